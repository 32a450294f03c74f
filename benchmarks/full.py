"""Fine-tuning in full against the probe: ``VITRAIL_DATA=folder python -m benchmarks.full``.

``imagenette-subset`` with ``saliency-s14`` at 112 pixels, defaults:

- ``--method full`` on all 2,500 training photos. Aim, written down before: 92 %; a plain AdamW run of 8 epochs
  gives 91.2.
- full and probe on 20 training photos a class (listed in ``splits/imagenette-20-per-class.csv``): the difference
  on the same held-out photos, with its paired bootstrap interval.

About 20 minutes on two cores.
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.imagenette import WEIGHTS, labelled_table, write_draws
from benchmarks.results_file import record
from vitrail.evaluate.metrics import paired_bootstrap
from vitrail.tasks.finetune import finetune

DRAW = Path(__file__).parent / "splits" / "imagenette-20-per-class.csv"


def main() -> None:
    """Run them, print and record what came out."""
    data = Path(os.environ.get("VITRAIL_DATA", "")) / "imagenette-subset"
    if not (data / "train").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset/{train,val}.")
    findings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        few = labelled_table(data, DRAW, 0, Path(scratch) / "few.csv")
        for name, source, method in (
            ("few probe", few, "probe"),
            ("few full", few, "full"),
            ("all full", data, "full"),
        ):
            out = Path(scratch) / name
            result = finetune(source, out, weights=WEIGHTS, method=method, resolution=112).to_dict()
            wanted = ("top1", "interval", "calibration_error", "minutes", "epochs", "training_images_per_second")
            findings[name] = {key: result[key] for key in wanted}
            print(name, findings[name], flush=True)
        fully, probed = (right(Path(scratch) / name / "predictions.csv") for name in ("few full", "few probe"))
    difference, low, high = paired_bootstrap(fully, probed)
    findings["few full - few probe"] = {"difference": difference, "interval": [low, high]}
    low_to_high = f"{100 * low:+.1f} to {100 * high:+.1f}"
    print(f"20 a class, full less probe: {100 * difference:+.1f} points, 95 % interval {low_to_high}")
    print(record("full", findings))


def right(table: Path) -> np.ndarray:
    """Whether each held-out photo was classified correctly, in the order of their paths."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    return np.array([row["label"] == row["predicted"] for row in rows])


if __name__ == "__main__":
    if sys.argv[1:] == ["--draw"]:
        write_draws(Path(os.environ["VITRAIL_DATA"]) / "imagenette-subset", DRAW, draws=1, per_class=20)
    else:
        main()
