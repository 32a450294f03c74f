"""The pictures that an experiment's results are of: looked at once before the first run, known again before others."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitrail.atomic import new_file
from vitrail.data.held import Pictures, hold
from vitrail.data.sources import open_labelled
from vitrail.errors import UserError
from vitrail.experiments.lab import read
from vitrail.experiments.run import order, test_folder
from vitrail.report.terminal import Show
from vitrail.tasks.features import content_hashes, flattering, twins

LEAST = 3
"""Pictures of a class to learn from: one that settings are searched by, and two."""


def look_at(root: Path, split: Path, show: Show) -> list[str]:
    """See that pictures can be learned from and judged by, and are those that earlier results are of.

    The list ``split`` is made, and beside it, ending in ``.json``, what the pictures are known by: their names and
    sizes.

    Returns:
        What a reader of the results should know: pictures that are both learned from and judged by.

    Raises:
        UserError: they are others than before; the parts have other classes, a class has too few pictures, or one to be
            judged by cannot be read.
    """
    test = test_folder(root)
    known = split.with_suffix(".json")
    digest = _digest(root, test)
    if known.is_file():
        if read(known).get("pictures") != digest:
            raise UserError(
                f"The results in {split.parents[1]} are of other pictures called {root.name}, or {root} has changed "
                "since: bring them back, or name another --out."
            )
        return _told(root, read(known).get("twins", []))
    lists = order(root, split)
    for name, paths in lists.items():
        if len(paths) < LEAST:
            raise UserError(f"{root / 'train' / name} has {len(paths)} pictures: an experiment needs {LEAST} of each.")
    judged = [sample.path for sample in open_labelled(test, sorted(lists))]
    with show.progress("Reading the pictures to be judged by") as advance:
        _, broken = hold(Pictures(judged, 32), 0.0, advance)
    if broken:
        first = min(broken)
        raise UserError(
            f"{len(broken)} of the pictures to be judged by cannot be read, such as {first} ({broken[first]}): mend or "
            "remove them."
        )
    learned = [root / path for paths in lists.values() for path in paths]
    both = [
        [path.relative_to(root).as_posix() for path in (learned[one], judged[other])]
        for one, other in twins(Show(quiet=True), learned, judged, content_hashes([*learned, *judged]))
    ]
    about = {"pictures": digest, "train": len(learned), "test": len(judged), "twins": both}
    with new_file(known) as beside:
        beside.write_text(json.dumps(about) + "\n", "utf-8")
    return _told(root, both)


def _told(root: Path, both: Sequence[Sequence[str]]) -> list[str]:
    place = Path(root.name)
    return [flattering([(place / one, place / other) for one, other in both])] if both else []


def commonest(root: Path) -> float:
    """The share of the largest class among the pictures to be judged by: what answering it always gets right."""
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    counts = Counter(sample.label for sample in open_labelled(test_folder(root), classes))
    return max(counts.values()) / counts.total()


def _digest(root: Path, test: Path) -> str:
    found = hashlib.sha256()
    for part in (root / "train", test):
        for path in sorted(path for path in part.rglob("*") if path.is_file()):
            found.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    return found.hexdigest()
