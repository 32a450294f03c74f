"""How long ``import vitrail`` and the commands take to start: ``python -m benchmarks.startup``.

Medians of 15 processes each, interleaved with a bare interpreter; the aim is under 0.3 s for the first three, and
for one photo through a small random model (ViT-Ti/16) under half a second more than ``import torch``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks.results_file import publish, record
from vitrail.report.markdown import table
from vitrail.tasks.classifier import load

VITRAIL = [sys.executable, "-m", "vitrail.cli.main"]


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed; the model and the photo it takes are written to ``folder``."""
    classifier = load("none", architecture="ViT-Ti/16", classes=("one", "other"), quiet=True)
    torch.nn.init.normal_(classifier.model.classifier.weight)  # type: ignore[union-attr]
    classifier.save(folder / "model")
    Image.linear_gradient("L").resize((500, 375)).save(folder / "photo.jpg")
    return {
        "python": [sys.executable, "-c", "pass"],
        "import vitrail": [sys.executable, "-c", "import vitrail"],
        "vitrail --help": [*VITRAIL, "--help"],
        "vitrail finetune --help": [*VITRAIL, "finetune", "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "vitrail predict, one photo": [*VITRAIL, "predict", str(folder / "model"), str(folder / "photo.jpg")],
    }


def main(rounds: int = 15) -> None:
    """Time them, print and record the medians."""
    with tempfile.TemporaryDirectory() as scratch:
        timed = commands(Path(scratch))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds):
            for name, command in timed.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<28}{median:.3f} s")
    rows = [[name, f"{median:.2f}"] for name, median in medians.items()]
    publish("startup", table(["a process", "seconds"], rows), record("startup", medians))


if __name__ == "__main__":
    main()
