"""Features of pictures in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.atomic import new_file, refuse_unwritable
from vitrail.data.sources import iter_images
from vitrail.errors import UserError
from vitrail.report.terminal import Show
from vitrail.runtime.plan import Runtime
from vitrail.tasks.classifier import Classifier, load
from vitrail.tasks.parquet import pyarrow, write_parquet


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    out: Path
    images: int
    width: int
    unreadable: list[tuple[Path, str]]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "out": str(self.out),
            "images": self.images,
            "width": self.width,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


def embed(
    model: str | Path | Classifier,
    pictures: Sequence[str | Path],
    out: str | Path,
    *,
    batch_size: int = 32,
    device: str | None = None,
    runtime: str | Runtime | None = None,
    quiet: bool = False,
) -> Embedded:
    """Write what the model's classifier sees of each picture to ``out``.

    Args:
        model: a ``Classifier``, or anything ``load`` takes; a classifier is not needed.
        pictures: files and folders.
        out: ``.npz`` with the arrays paths (n,) and features (n, F) float32, or ``.parquet`` with the
            columns path and features.
        runtime: as for ``load``.

    Raises:
        UserError: ``out`` has another ending, a path does not exist, no picture could be read, or the
            disk is full; what stood at ``out`` is then untouched.
    """
    out = Path(out)
    writers = {".npz": _write_npz, ".parquet": _write_parquet}
    if out.suffix not in writers:
        raise UserError(f"{out} should end in .npz or .parquet, which decide the format.")
    if out.suffix == ".parquet":
        pyarrow(", or write .npz instead")
    refuse_unwritable(out)
    paths = iter_images(pictures)
    classifier = model if isinstance(model, Classifier) else load(model, device=device, runtime=runtime, quiet=quiet)
    kept: list[Path] = []
    rows: list[np.ndarray] = []
    unreadable: list[tuple[Path, str]] = []
    with Show(quiet).progress("Embedding") as advance:
        for entry in classifier.iter_embeddings(paths, batch_size):
            if entry.features is None:
                unreadable.append((entry.path, entry.reason or ""))
            else:
                kept.append(entry.path)
                rows.append(entry.features)
            if not (done := len(kept) + len(unreadable)) % batch_size:  # they come a batch at a time
                advance(done, None)
    if not rows:
        raise UserError(f"None of the {len(unreadable)} pictures can be read, the first because: {unreadable[0][1]}.")
    features = np.stack(rows)  # (n, F)
    names = [os.fsencode(path).decode(errors="backslashreplace") for path in kept]
    with new_file(out) as beside:
        writers[out.suffix](beside, names, features)
    return Embedded(out, len(kept), features.shape[1], unreadable)


def _write_npz(path: Path, names: list[str], features: np.ndarray) -> None:
    with path.open("wb") as file:  # by name, numpy would add an ending of its own
        np.savez(file, paths=np.array(names), features=features)


def _write_parquet(path: Path, names: list[str], features: np.ndarray) -> None:
    column = pyarrow().FixedSizeListArray.from_arrays(features.reshape(-1), features.shape[1])
    write_parquet(path, {"path": names, "features": column})
