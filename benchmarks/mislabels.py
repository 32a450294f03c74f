"""Planted wrong labels, and who finds them: ``VITRAIL_DATA=folder python -m benchmarks.mislabels``.

Of ``imagenette-subset``'s 2,500 training labels 3 % are replaced, in two ways: by another class at
random, and by the class a probe on the clean labels finds most likely next, which is how people
err. Features are those of ``saliency-s14`` at 224 pixels. ``vitrail.evaluate.mislabel.suspects`` and
cleanlab's confident learning (``find_label_issues`` at its defaults, ranked by self-confidence) see
the same out-of-fold probabilities of ``fit_probe`` on those labels; five draws each, and none planted.

A hit is a planted label; labels wrong before count as misses for both. Besides precision and recall
of each list, the precision of both at equal length: at the length of ours, and at cleanlab's.
Needs ``pip install 'vitrail[bench]'``; five to ten minutes on two cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues

from benchmarks.frozen_features import PARTS, imagenette
from benchmarks.results_file import record
from vitrail.evaluate.mislabel import label_noise, suspects
from vitrail.evaluate.probe import fit_probe, out_of_fold

SHARE = 0.03
DRAWS = range(100, 105)


def main() -> None:
    """Run all of it, print and record what came out."""
    train, _ = imagenette(224)
    x, y = train.features, train.labels
    clean = out_of_fold(x, y, fit_probe(x, y, PARTS), 0)
    next_likely = np.where(np.eye(y.max() + 1, dtype=bool)[y], -1, clean).argmax(axis=1)
    ours = suspects(clean, y)
    findings: dict[str, Any] = {
        "none planted": {
            "ours": [train.paths[entry.index].relative_to(train.paths[0].parents[1]).as_posix() for entry in ours],
            "cleanlab length": len(find_label_issues(y, clean, return_indices_ranked_by="self_confidence")),
        }
    }
    print("none planted:", findings["none planted"])
    for kind in ("random class", "next likely class"):
        rows = [_draw(x, y, next_likely, kind, draw) for draw in DRAWS]
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        findings[kind] = {"mean": mean, "draws": rows}
        print(f"{kind}, mean of {len(rows)} draws:", mean, flush=True)
    print(record("mislabels", findings))


def _draw(x: np.ndarray, y: np.ndarray, next_likely: np.ndarray, kind: str, draw: int) -> dict[str, Any]:
    chance = np.random.default_rng(draw)
    planted = chance.choice(len(y), round(SHARE * len(y)), replace=False)
    given = y.copy()
    classes = y.max() + 1
    other = (y[planted] + chance.integers(1, classes, len(planted))) % classes
    given[planted] = other if kind == "random class" else next_likely[planted]
    probabilities = out_of_fold(x, given, fit_probe(x, given, PARTS, seed=draw), draw)
    wrong = given != y
    found = suspects(probabilities, given)
    ours = np.array([entry.index for entry in found], int)
    theirs = np.asarray(find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence"), int)
    by_self_confidence = np.argsort(probabilities[np.arange(len(y)), given], kind="stable")
    row = {
        "planted": len(planted),
        "length": len(ours),
        "precision": float(wrong[ours].mean()) if len(ours) else None,
        "recall": float(wrong[ours].sum() / len(planted)),
        "expected precision": float(np.mean([entry.wrong for entry in found])) if found else None,
        "estimated share of wrong labels": label_noise(probabilities, given).share,
        "cleanlab length": len(theirs),
        "cleanlab precision": float(wrong[theirs].mean()),
        "cleanlab recall": float(wrong[theirs].sum() / len(planted)),
        "cleanlab precision at our length": float(wrong[theirs[: len(ours)]].mean()),
        "self-confidence precision at our length": float(wrong[by_self_confidence[: len(ours)]].mean()),
    }
    print(kind, draw, row, flush=True)
    return row


if __name__ == "__main__":
    main()
