"""Folds are balanced, equal pictures stay together, and nothing depends on the order of what is given."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.errors import UserError
from vitrail.evaluate.folds import folds

PICTURES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), max_size=60)


@given(PICTURES, st.integers(2, 5), st.integers(0, 3))
def test_every_fold_is_a_small_picture_of_the_whole(pictures: list[tuple[int, int]], count: int, seed: int) -> None:
    own = [(label, f"{label} {name}") for label in range(4) for name in range(count)] + [
        (label, f"{label} {name}") for label, name in pictures
    ]
    labels, contents = [label for label, _ in own], [content for _, content in own]
    found = folds(labels, contents, count, seed)
    homes: dict[str, set[int]] = {}
    for content, fold in zip(contents, found, strict=True):
        homes.setdefault(content, set()).add(fold)
    assert all(len(places) == 1 for places in homes.values())
    different = Counter((content.split()[0], min(places)) for content, places in homes.items())
    for label in "0123":
        sizes = [different[label, fold] for fold in range(count)]
        assert max(sizes) - min(sizes) <= 1
    backwards = folds(labels[::-1], contents[::-1], count, seed)[::-1]
    assert backwards == found


def test_a_picture_under_two_labels_is_in_one_fold() -> None:
    found = folds([0, 0, 0, 1, 1, 1], ["a", "b", "c", "a", "d", "e"], 2)
    assert found[0] == found[3]


def test_too_few_pictures_or_folds_is_a_sentence() -> None:
    with pytest.raises(UserError, match="2 different pictures, fewer than the 3 folds"):
        folds([0, 0, 0], ["a", "a", "b"], 3)
    with pytest.raises(UserError, match="at least 2 folds"):
        folds([0], ["a"], 1)
