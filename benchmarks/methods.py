"""Four ways to use a pretrained model, and what each costs: ``VITRAIL_DATA=folder python -m benchmarks.methods``.

``imagenette-subset`` with ``saliency-s14`` at 112 pixels, 50 training photos a class (listed in
``splits/imagenette-50-per-class.csv``), all 1,000 held-out photos, every other setting at its default: kNN, probe,
LoRA and full. Each runs in a process of its own, from an empty feature cache, so that its minutes and its peak
memory (VmHWM) are its own; what a process holds that has only loaded the model stands beside them.

Records the results and writes the table of ``docs/finetune.md``. With ``--try`` one epoch, and nothing is recorded;
with ``--table`` the table alone is written again. About 40 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.full import right
from benchmarks.imagenette import WEIGHTS, labelled_table, write_draws
from benchmarks.results_file import RESULTS, record
from vitrail.cache import cache_dir
from vitrail.evaluate.metrics import paired_bootstrap
from vitrail.report.markdown import table, write_section
from vitrail.report.terminal import duration, percent
from vitrail.tasks.classifier import load
from vitrail.tasks.finetune import finetune

DRAW = Path(__file__).parent / "splits" / "imagenette-50-per-class.csv"
PAGE = Path(__file__).parents[1] / "docs" / "finetune.md"
METHODS = ("knn", "probe", "lora", "full")
RESOLUTION = 112


def main(epochs: int | None = None) -> dict[str, Any]:
    """Run them one after the other and print what came out; ``epochs`` for the two that train."""
    data = Path(os.environ.get("VITRAIL_DATA", "")) / "imagenette-subset"
    if not (data / "train").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset/{train,val}.")
    findings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        source = labelled_table(data, DRAW, 0, Path(scratch) / "photos.csv")
        findings["loading"] = _in_a_process(["loading"], Path(scratch))
        for method in METHODS:
            words = [method, str(source), str(Path(scratch) / method), str(epochs or 0)]
            findings[method] = _in_a_process(words, Path(scratch))
            print(method, findings[method], flush=True)
        answers = {method: right(Path(scratch) / method / "predictions.csv") for method in METHODS}
    for one, other in (("probe", "knn"), ("lora", "probe"), ("full", "probe"), ("full", "lora")):
        difference, low, high = paired_bootstrap(answers[one], answers[other])
        findings[f"{one} - {other}"] = {"difference": difference, "interval": [low, high]}
        print(f"{one} less {other}: {100 * difference:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}")
    return findings


def one(method: str, source: str = "", out: str = "", epochs: str = "0") -> None:
    """One run in this process, its result on standard output; ``loading``: the model is loaded and that is all."""
    found: dict[str, Any] = {}
    if method == "loading":
        load(WEIGHTS, RESOLUTION, quiet=True)
    else:
        run = finetune(
            source, out, weights=WEIGHTS, method=method, resolution=RESOLUTION, epochs=int(epochs) or None, quiet=True
        )
        result = run.to_dict()
        wanted = ("method", "top1", "interval", "minutes", "epochs", "training_images_per_second", "trained_on")
        found = {name: result[name] for name in wanted}
        head = 0 if run.probe is None else run.probe.weight.size + run.probe.bias.size
        found["parameters"] = head if run.trained is None else run.trained.parameters
    print(json.dumps({**found, "peak_bytes": _peak()}))


def section(findings: Mapping[str, Any]) -> str:
    """In Markdown."""
    names = {"knn": "`knn`", "probe": "`probe`", "lora": "`lora`", "full": "`full`"}
    rows = []
    for method, name in names.items():
        row = findings[method]
        accuracy = f"{percent(row['top1'])} ({' to '.join(f'{100 * bound:.1f}' for bound in row['interval'])})"
        rows.append([name, accuracy, duration(60 * row["minutes"]), f"{row['parameters']:,}", _mebibytes(row)])
    lines = [
        table(["method", "held-out accuracy (95 %)", "time", "numbers learned", "peak memory"], rows),
        f"\nA process that has loaded the model and done nothing else has used {_mebibytes(findings['loading'])}.",
    ]
    for pair in ("lora - probe", "full - probe", "full - lora"):
        better, worse = pair.split(" - ")
        low, high = findings[pair]["interval"]
        lines.append(
            f"`{better}` less `{worse}`: {100 * findings[pair]['difference']:+.1f} points "
            f"(paired bootstrap, 95 %: {100 * low:+.1f} to {100 * high:+.1f})."
        )
    return "\n".join(lines)


def _in_a_process(words: list[str], scratch: Path) -> dict[str, Any]:
    """What ``one`` prints, from an empty cache of features beside the weights that are there."""
    cache = Path(tempfile.mkdtemp(dir=scratch))
    (cache / "weights").symlink_to(cache_dir() / "weights")
    environment = {**os.environ, "VITRAIL_CACHE": str(cache)}
    command = [sys.executable, "-m", "benchmarks.methods", "--one", *words]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak() -> int:
    """Most memory this process has held, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _mebibytes(row: Mapping[str, Any]) -> str:
    return f"{row['peak_bytes'] / 2**20:,.0f} MiB"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    elif sys.argv[1:] == ["--draw"]:
        write_draws(Path(os.environ["VITRAIL_DATA"]) / "imagenette-subset", DRAW, draws=1, per_class=50)
    elif sys.argv[1:] == ["--try"]:
        load(WEIGHTS, quiet=True)  # downloads them, so that the minutes are those of the work
        print(section(main(epochs=1)))
    else:
        if sys.argv[1:] != ["--table"]:
            load(WEIGHTS, quiet=True)
            print(record("methods", main()))
        write_section(PAGE, "methods", section(json.loads((RESULTS / "methods.json").read_text())["findings"]))
