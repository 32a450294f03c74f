"""ReaL labels: the right ones of the right set, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitrail.errors import UserError
from vitrail.evaluate.real import read_real, real_accuracy

PICTURES = [Path(f"val/n0/ILSVRC2012_val_{number:08d}.JPEG") for number in (3, 1, 4, 2)]
LABELS = [2, 0, 1, 0]


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "real.json"
    path.write_text(json.dumps(content))
    return path


def test_labels_are_found_by_the_number_of_the_file(tmp_path: Path) -> None:
    rows = [[0], [0, 1], [2], []]
    expected = [frozenset(rows[number - 1]) for number in (3, 1, 4, 2)]
    assert read_real(written(tmp_path, rows), PICTURES, LABELS, 3) == expected
    named = {f"ILSVRC2012_val_{number:08d}.JPEG": row for number, row in enumerate(rows, 1)}
    assert read_real(written(tmp_path, named), PICTURES, LABELS, 3) == expected
    found = real_accuracy([2, 1, 1, 1], expected)
    assert (found.accuracy, found.images) == (pytest.approx(2 / 3), 3)
    assert found.interval[0] < 2 / 3 < found.interval[1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([[1], [2], [0], [2]], "agrees with the folders of 0 of 4 pictures, so it is of another set"),
        ([[0], [0]], "has no entry for ILSVRC2012_val_00000003.JPEG: it holds those of 2 pictures"),
        ([[0], [0], [7], [1]], "has the class number 7, and the model 3 classes"),
        ([0, 1, 2, 0], "is no list with a list of class numbers for each picture"),
        ([[0], ["cat"], [2], [1]], "is no list with a list"),
        ([[], [], [], []], "agrees with the folders of 0 of 0 pictures"),
    ],
)
def test_a_file_of_another_set_is_named(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_real(written(tmp_path, content), PICTURES, LABELS, 3)
    assert sentence in str(error.value)


def test_no_file_and_no_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"real\.json cannot be read"):
        read_real(tmp_path / "real.json", PICTURES, LABELS, 3)
    (tmp_path / "real.json").write_text("{")
    with pytest.raises(UserError, match=r"real\.json cannot be read"):
        read_real(tmp_path / "real.json", PICTURES, LABELS, 3)
