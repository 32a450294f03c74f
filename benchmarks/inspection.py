"""What looking on costs: ``VITRAIL_DATA=folder python -m benchmarks.inspection``

1,000 pictures of ``imagenette-subset`` at 224 x 224 through ``saliency-s14``, files to numbers: plain inference
(features, fused attention, batches of 32, as ``vitrail embed`` does) against all statistics of ``vitrail inspect``
that need a forward pass, in one pass, without and with rollout. Each case in a process of its own, the cases taking
turns three times: median seconds, and the peak of resident memory (VmHWM), all of it and above what the process
held with the model loaded. Aims, written down before: 1.3 times the memory, twice the time. Ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import vitrail
from benchmarks.high_resolution import peak
from benchmarks.results_file import record
from vitrail.analyze.attention import Rollout
from vitrail.analyze.stream import observe
from vitrail.data.batches import batches
from vitrail.model.vision import VisionTransformer
from vitrail.tasks.inspection_pass import TRACED, Streamed

CASES = ("plain inference", "all statistics", "all statistics and rollout")
ROUNDS, PICTURES = 3, 1000


def main() -> None:
    """Run every case, print and record."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    if not os.environ.get("VITRAIL_DATA"):
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset/{train,val}.")
    rounds: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(ROUNDS):
        for case in CASES:
            command = [sys.executable, "-m", "benchmarks.inspection", case]
            rounds[case].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            print(case, rounds[case][-1], flush=True)
    findings = {
        case: {name: statistics.median(one[name] for one in found) for name in found[0]}
        for case, found in rounds.items()
    }
    plain = findings[CASES[0]]
    for found in findings.values():
        found["times_plain_seconds"] = found["seconds"] / plain["seconds"]
        found["times_plain_memory"] = found["peak_MiB"] / plain["peak_MiB"]
    for case, found in findings.items():
        print(f"{case:<28}", " ".join(f"{name} {value:.2f}" for name, value in found.items()))
    print(record("inspection", findings))


def measure(case: str) -> dict[str, float]:
    """One case, in this process."""
    folder = Path(os.environ["VITRAIL_DATA"]) / "imagenette-subset" / "train"
    pictures = sorted(folder.glob("*/*"))
    pictures = pictures[:: len(pictures) // PICTURES][:PICTURES]
    classifier = vitrail.load("saliency-s14", image_size=224, device="cpu")
    predictor, how = classifier.predictor, classifier.card.preprocessing
    model = classifier.model
    assert isinstance(model, VisionTransformer)
    statistics = Streamed.of(model).statistics
    if "rollout" in case:
        statistics.append(Rollout(model.config.encoder.layers))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, start = peak(), time.perf_counter()
    if case == CASES[0]:
        for batch in batches(pictures, how, 32):
            predictor.features(batch.images)
    else:
        observe(predictor.encode, (batch.images for batch in batches(pictures, how, TRACED)), statistics)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_MiB": peak(), "above_model_MiB": peak() - before}


if __name__ == "__main__":
    main()
