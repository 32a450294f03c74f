"""Noisy Student: the labels taken are the paper's; students learn from them; it goes on where it stopped."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.config import ViTConfig
from vitrail.data.sources import open_dataset
from vitrail.data.table import Extra, read_extras
from vitrail.errors import UserError
from vitrail.resnet import BiTConfig
from vitrail.tasks import noisy_student as module
from vitrail.tasks.noisy_student import PseudoLabels, choose, noisy_student
from vitrail.tasks.pretrain import pretrain
from vitrail.weights.load import load_weights

MODEL: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "patch": 8, "resolution": 16}
HOW: dict[str, Any] = {**MODEL, "steps": 30, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 10}
CALM = {"operations": 0, "erase": 0.0, "evaluate_every": 30}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and light pictures: ``labelled`` and, among them mixed, ``others``."""
    folder = tmp_path_factory.mktemp("data")
    chance = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        for number in range(20):
            place = folder / "labelled" / name if number < 10 else folder / "others"
            place.mkdir(parents=True, exist_ok=True)
            pixels = chance.integers(0, 100, (16, 16, 3)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{name}-{number}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    pretrain(data / "labelled", out, objective="supervised", quiet=True, tuning=CALM, **HOW)
    return out


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_student_learns_from_what_its_teacher_says(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = noisy_student(
        data / "labelled", data / "others", teacher, out, rounds=2, tuning=CALM,
        pseudo=PseudoLabels(confidence=0.0), **HOW,
    )  # fmt: skip
    said = capsys.readouterr()
    sizes = re.findall(r"[\d.]+ M parameters", said.out + said.err)
    assert len(sizes) == 4, "each round's teacher and student"
    assert len(set(sizes)) == 1, "which are alike"
    rows = _table(out / "round-1" / "pseudo.csv")
    taken = [row for row in rows if row["shares"]]
    assert len(taken) == 20
    assert sum(row["label"] == Path(row["path"]).name.split("-")[0] for row in taken) >= 19
    assert sum(row["split"] == "val" for row in rows) == 4
    for row in taken:
        shares = [float(share) for share in row["shares"].split()]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert ["dark", "light"][int(np.argmax(shares))] == row["label"]
    assert result.folder == out / "round-2" / "student"
    assert result.pictures == 16 + 20
    assert result.evaluation is not None
    assert result.evaluation.top1 >= 0.75
    before = (result.folder / "model" / "model.safetensors").read_bytes()
    noisy_student(
        data / "labelled", data / "others", teacher, out, rounds=2, quiet=True, tuning=CALM,
        pseudo=PseudoLabels(confidence=0.0), **HOW,
    )  # fmt: skip
    assert (result.folder / "model" / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="was begun with seed = 0, not 1"):
        noisy_student(
            data / "labelled", data / "others", teacher, out, rounds=2, quiet=True, tuning=CALM, seed=1,
            pseudo=PseudoLabels(confidence=0.0), **HOW,
        )  # fmt: skip


def test_killed_at_any_place_it_ends_the_same(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(out: Path) -> bytes:
        result = noisy_student(
            data / "labelled", data / "others", teacher, out, quiet=True, tuning=CALM,
            pseudo=PseudoLabels(soft=False, confidence=0.0), **HOW,
        )  # fmt: skip
        return (result.folder / "model" / "model.safetensors").read_bytes()

    class Killed(BaseException):
        pass

    def kill(*words: object) -> None:
        raise Killed

    whole = go(tmp_path / "whole")
    for name in ("_write_table", "pretrain"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *words, **more: kill())
            with pytest.raises(Killed):
                go(tmp_path / "killed")
    assert go(tmp_path / "killed") == whole


def test_a_folder_where_no_student_was_begun_takes_other_settings(data: Path, teacher: Path, tmp_path: Path) -> None:
    def go(sure: float, **how: Any) -> None:
        noisy_student(
            data / "labelled", data / "others", teacher, tmp_path / "out", quiet=True, tuning=CALM,
            pseudo=PseudoLabels(confidence=sure), **{**HOW, **how},
        )  # fmt: skip

    with pytest.raises(UserError, match=r"nowhere surer .*: lower the confidence"):
        go(0.9999999)
    with pytest.raises(UserError, match=r"no architecture|There is no"):
        go(0.0, architecture="ViT-Q/16")
    go(0.0)
    with pytest.raises(
        UserError, match=r"was begun with pseudo = soft True, confidence 0\.0, per_class None, not soft"
    ):
        go(0.1)


def test_another_teacher_must_know_the_classes_too(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    for name, pictures in (("dark", "dark"), ("grey", "light")):
        (tmp_path / "other" / name).symlink_to(data / "labelled" / pictures)
    stranger, out = tmp_path / "stranger", tmp_path / "out"
    pretrain(tmp_path / "other", stranger, objective="supervised", quiet=True, tuning=CALM, **{**HOW, "steps": 1})

    def go(teacher: Path, labelled: Path = data / "labelled", rounds: int = 1) -> None:
        noisy_student(
            labelled, data / "others", teacher, out, rounds=rounds, quiet=True, tuning=CALM,
            pseudo=PseudoLabels(confidence=0.0), **HOW,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(module, "pretrain", lambda *words, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            go(teacher)
    before = (out / "round-1" / "pseudo.csv").read_bytes()
    with pytest.raises(UserError, match="'grey' is one that the labelled pictures do not have: take a teacher"):
        go(stranger)
    assert (out / "round-1" / "pseudo.csv").read_bytes() == before  # the folder is still the first teacher's
    go(teacher)


def test_classes_that_came_after_a_round_are_said(data: Path, teacher: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled"
    shutil.copytree(data / "labelled", labelled)

    def go(rounds: int) -> None:
        noisy_student(
            labelled, data / "others", teacher, tmp_path / "out", rounds=rounds, quiet=True, tuning=CALM,
            pseudo=PseudoLabels(confidence=0.0), **{**HOW, "steps": 2},
        )  # fmt: skip

    go(1)
    shutil.copytree(labelled / "dark", labelled / "new")
    with pytest.raises(UserError, match="'new' is one that the teacher does not know"):
        go(2)


def test_tuples_are_the_same_settings_when_it_is_called_again(data: Path, teacher: Path, tmp_path: Path) -> None:
    def go() -> bytes:
        result = noisy_student(
            data / "labelled", data / "others", teacher, tmp_path / "out", quiet=True,
            tuning={**CALM, "betas": (0.9, 0.95)}, pseudo=PseudoLabels(confidence=0.0),
            **{**HOW, "resolution": (16, 16), "steps": 2},
        )  # fmt: skip
        return (result.folder / "model" / "model.safetensors").read_bytes()

    assert go() == go()


@given(st.integers(1, 30), st.integers(2, 4), st.floats(0, 0.9), st.one_of(st.none(), st.integers(1, 9)), st.data())
def test_what_is_chosen(n: int, classes: int, confidence: float, per_class: int | None, data: st.DataObject) -> None:
    chance = np.random.default_rng(data.draw(st.integers(0, 1000)))
    answers = chance.dirichlet(np.full(classes, 0.5), n).astype(np.float32)
    answers[chance.random(n) < 0.1] = 0.0  # could not be read
    sure, best = answers.max(axis=1), answers.argmax(axis=1)
    passing = (sure >= confidence) & (sure > 0)
    pseudo = PseudoLabels(confidence=confidence, per_class=per_class)
    if not passing.any():
        with pytest.raises(UserError, match="lower the confidence"):
            choose(answers, pseudo, 0)
        return
    chosen = choose(answers, pseudo, 0)
    assert all(passing[chosen])
    if per_class is None:
        assert sorted(chosen) == np.flatnonzero(passing).tolist()
        return
    for label in range(classes):
        own = [row for row in chosen if best[row] == label]
        there = np.flatnonzero(passing & (best == label))
        assert len(own) == (per_class if there.size else 0)
        assert len(set(own)) == min(per_class, there.size)
        left = set(there) - set(own)
        assert not own or max((sure[row] for row in left), default=0.0) <= min(sure[row] for row in own)


def test_a_student_without_stochastic_depth(data: Path, teacher: Path, tmp_path: Path) -> None:
    """A ResNet has none, and is noised by its pictures alone; a ViT has some unless it is said otherwise."""
    how = {**HOW, "steps": 2}
    cnn = {name: value for name, value in how.items() if name not in MODEL} | {"architecture": "R1-1x0.5"}
    drops = {}
    for name, student in (("ResNet", cnn), ("ViT", how), ("calm ViT", how | {"drop_path": 0.0})):
        result = noisy_student(
            data / "labelled", data / "others", teacher, tmp_path / name, quiet=True, tuning=CALM,
            pseudo=PseudoLabels(confidence=0.0), **student,
        )  # fmt: skip
        config = load_weights(result.folder).card.architecture
        drops[name] = config.encoder.drop_path if isinstance(config, ViTConfig) else None
        assert isinstance(config, BiTConfig) == (name == "ResNet")
    assert drops == {"ResNet": None, "ViT": 0.1, "calm ViT": 0.0}
    with pytest.raises(UserError, match="have no drop_path"):
        noisy_student(
            data / "labelled", data / "others", teacher, tmp_path / "deep", quiet=True,
            pseudo=PseudoLabels(confidence=0.0), **cnn, drop_path=0.2,
        )  # fmt: skip
    with pytest.raises(UserError, match="There is no"):
        noisy_student(data / "labelled", data / "others", teacher, tmp_path / "wrong", quiet=True, architecture="R2D2")
    assert not list(tmp_path.glob("deep*")) + list(tmp_path.glob("wrong*")), "nothing was labelled"


def test_wrong_words(data: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is among the labelled pictures too, or is a copy"):
        noisy_student(
            data / "labelled", data / "labelled", teacher, tmp_path / "a", quiet=True,
            pseudo=PseudoLabels(confidence=0.0), **HOW,
        )  # fmt: skip
    shutil.copytree(data / "others", tmp_path / "copies")
    held_out = open_dataset(data / "labelled", 0.2, 0).val[0].path
    shutil.copyfile(held_out, tmp_path / "copies" / "innocent.png")
    with pytest.raises(UserError, match=r"innocent\.png is among the labelled"):
        noisy_student(
            data / "labelled", tmp_path / "copies", teacher, tmp_path / "c", quiet=True,
            pseudo=PseudoLabels(confidence=0.0), **HOW,
        )  # fmt: skip
    (tmp_path / "other").mkdir()
    for name in ("dark", "grey"):
        (tmp_path / "other" / name).symlink_to(data / "labelled" / ("dark" if name == "dark" else "light"))
    with pytest.raises(UserError, match="'grey' is one that the teacher does not know"):
        noisy_student(tmp_path / "other", data / "others", teacher, tmp_path / "b", quiet=True, **HOW)
    with pytest.raises(UserError, match="confidence must lie"):
        PseudoLabels(confidence=1.0)


@pytest.mark.parametrize("cells", ["0.5 0.6,1", "a b,1", "0.5 0.5,0", "-0.5 1.5,1", ",x"])
def test_extras_that_cannot_be_meant(cells: str, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"path,label,shares,times\n{data / 'others' / 'dark-10.png'},dark,{cells}\n")
    with pytest.raises(UserError, match=r"table\.csv, line 2: shares are numbers"):
        read_extras(table)


def test_extras(data: Path, tmp_path: Path) -> None:
    one, other = data / "others" / "dark-10.png", data / "others" / "dark-11.png"
    table = tmp_path / "table.csv"
    table.write_text(f"path,label,shares,times\n{one},dark,0.25 0.75,\n{other},dark,,1\n")
    assert read_extras(table) == {one: Extra((0.25, 0.75))}
    table.write_text(f"path,label\n{one},dark\n")
    assert read_extras(table) == {}
