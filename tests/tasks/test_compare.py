"""A comparison judges every picture once, says which model to use, goes on where it was, and is one comparison."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitrail
from tests.tasks.shades import write_shades
from vitrail.errors import UserError
from vitrail.tasks import compare as task
from vitrail.tasks.compare import compare
from vitrail.tasks.comparison import Candidate, Comparison


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """A model that was trained to tell dark from light, the same untrained, and 12 pictures of each, two the same."""
    folder = tmp_path_factory.mktemp("compare")
    write_shades(folder / "photos", 12)
    shutil.copy(folder / "photos" / "dark" / "00.png", folder / "photos" / "dark" / "twin.png")
    for name, steps in (("trained", 30), ("begun", 1)):
        vitrail.pretrain(
            folder / "photos", folder / name, objective="supervised", steps=steps, batch_size=8, learning_rate=1e-2,
            layers=2, width=24, heads=3, patch=4, resolution=16, quiet=True, tuning={"mixing": 0.0},
        )  # fmt: skip
    return str(folder / "trained"), str(folder / "begun"), folder / "photos"


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_every_picture_is_judged_once_by_a_model_that_had_not_seen_it(
    made: tuple[str, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *models, photos = made
    out = tmp_path / "out"
    page = tmp_path / "page.md"
    page.write_text("# Ours\n")
    found = compare(photos, out, models, ("probe", "full"), folds=2, minutes=0.005, page=page)
    assert len(found.candidates) == 4
    assert [one.accuracy for one in found.candidates] == sorted(
        (one.accuracy for one in found.candidates), reverse=True
    )
    assert found.candidates[0].accuracy > 0.9
    assert {len(one.right) for one in found.candidates} == {25}
    rows = [_rows(out / f"fold-{fold}.csv") for fold in range(2)]
    judged = [{row["path"] for row in own if row["split"] == "val"} for own in rows]
    assert not judged[0] & judged[1]
    assert len(judged[0] | judged[1]) == 25
    twins = {str(photos / "dark" / "00.png"), str(photos / "dark" / "twin.png")}
    assert twins <= judged[0] or twins <= judged[1]
    assert json.loads((out / "comparison.json").read_text())["best"] == found.candidates[0].name
    assert not list((out / "runs").iterdir())
    said = capsys.readouterr().err
    assert f"Use {found.candidates[0].name}" in said
    assert page.read_text().startswith("# Ours\n")
    assert (out / "comparison.md").read_text().startswith("# Which model to use\n")
    for path in (page, out / "comparison.md"):
        assert path.read_text().count("| pretrained |") == 4
        assert f"- Use {found.candidates[0].name}" in path.read_text()


def test_what_is_finished_is_not_made_again_and_what_was_stopped_goes_on(
    made: tuple[str, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *models, photos = made
    usual, began = task.run, list[str]()

    def counting(settings: object, out: Path, quiet: bool = False) -> object:
        began.append(out.name)
        if len(began) == 2:
            raise KeyboardInterrupt
        return usual(settings, out, quiet)  # type: ignore[arg-type]

    monkeypatch.setattr(task, "run", counting)
    with pytest.raises(KeyboardInterrupt):
        compare(photos, tmp_path / "out", models, ("probe",), folds=2, quiet=True)
    whole = compare(photos, tmp_path / "out", models, ("probe",), folds=2, quiet=True)
    assert len(began) == 5  # the second twice
    again = compare(photos, tmp_path / "out", models, ("probe",), folds=2, quiet=True)
    assert len(began) == 5
    assert again.to_dict() == whole.to_dict()
    with pytest.raises(UserError, match="folds 2, not 3: choose another --out"):
        compare(photos, tmp_path / "out", models, ("probe",), folds=3, quiet=True)


def test_where_nothing_was_begun_other_settings_are_taken(made: tuple[str, str, Path], tmp_path: Path) -> None:
    *models, photos = made
    for out in ("out", "begun"):
        with pytest.raises(UserError, match=r"resolution|size|patch"):
            compare(photos, tmp_path / out, models, ("probe",), folds=2, resolution=17, quiet=True)
    (tmp_path / "begun" / "runs" / "one").mkdir()
    with pytest.raises(UserError, match="resolution 17, not None: choose another --out"):
        compare(photos, tmp_path / "begun", models, ("probe",), folds=2, quiet=True)
    compare(photos, tmp_path / "out", models, ("probe",), folds=2, quiet=True)
    with pytest.raises(UserError, match="resolution None, not 17: choose another --out"):
        compare(photos, tmp_path / "out", models, ("probe",), folds=2, resolution=17, quiet=True)


def test_held_out_pictures_of_the_data_are_not_touched_and_broken_ones_are_left_out(
    made: tuple[str, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *models, photos = made
    shutil.copytree(photos, tmp_path / "data" / "train")
    shutil.copytree(photos, tmp_path / "data" / "val")
    (tmp_path / "data" / "train" / "dark" / "01.png").unlink()
    (tmp_path / "data" / "train" / "dark" / "02.png").write_bytes(b"no picture")
    found = compare(tmp_path / "data", tmp_path / "out", models, ("probe",), folds=2)
    assert len(found.candidates[0].right) == 23
    assert not any("/val/" in row["path"] for row in _rows(tmp_path / "out" / "fold-0.csv"))
    assert "1 of 24 pictures cannot be read and are left out" in capsys.readouterr().err


def test_who_cannot_be_told_from_the_best_is_named() -> None:
    right = np.arange(100) < 90

    def candidate(name: str, right: np.ndarray) -> Candidate:
        return Candidate(name, "probe", right, 1.0, None, 10.0, 1_000)

    close, far = np.arange(100) >= 11, np.arange(100) < 60
    found = Comparison(Path(), (candidate("best", right), candidate("close", close), candidate("far", far)))
    assert [one.model for one in found.tied] == ["close"]
    mean, low, high = found.behind(found.candidates[2])
    assert low > 0.2
    assert mean == pytest.approx(0.3)
    assert high < 0.4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"models": ("none",), "methods": ("probe",)}, "nothing to compare"),
        ({"methods": ("probe", "ful")}, "no method 'ful'; the nearest is full"),
        ({"minutes": 0.0}, "minutes must be more than 0"),
        ({"methods": ("knn", "probe")}, "knn is no method to compare by"),
        ({"methods": ("auto",)}, "auto is no method to compare by"),
        ({"folds": 13}, "fewer than the 13 folds"),
        ({"page": Path(__file__).parent}, "is a folder: name a file"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    made: tuple[str, str, Path], tmp_path: Path, options: dict[str, object], said: str
) -> None:
    *models, photos = made
    with pytest.raises(UserError, match=said):
        compare(photos, tmp_path / "out", **{"models": models, "quiet": True, **options})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_models_whose_paths_differ_by_a_slash_alone_are_two(made: tuple[str, str, Path], tmp_path: Path) -> None:
    trained, begun, photos = made
    shutil.copytree(trained, tmp_path / "a" / "b")
    shutil.copytree(begun, tmp_path / "a-b")
    models = [str(tmp_path / "a" / "b"), str(tmp_path / "a-b")]
    found = compare(photos, tmp_path / "out", models, ("probe",), folds=2, quiet=True)
    assert {one.model for one in found.candidates} == set(models)
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 4
    next((tmp_path / "out" / "cells").iterdir()).write_text("{")
    with pytest.raises(UserError, match="cells"):
        compare(photos, tmp_path / "out", models, ("probe",), folds=2, quiet=True)
