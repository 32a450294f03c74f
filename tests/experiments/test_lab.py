"""Runs are made once, named by all that decides them, and gone on with; what they say is what was computed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrail.errors import UserError
from vitrail.experiments import baseline, data_scale, index, lab, masking, noisy_student, scale, versus_cnn
from vitrail.experiments import run as run_module
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run, hidden, order, packed, write_table
from vitrail.experiments.scale import Scale
from vitrail.record import to_dict
from vitrail.report.terminal import Show
from vitrail.settings import PretrainSettings
from vitrail.tasks.noisy_student import NOISE, PseudoLabels
from vitrail.tasks.pretrain_plan import arguments_of, policy_of, training_of
from vitrail.train.loop import Diverged

MODEL = {"layers": 1, "width": 16, "heads": 2, "patch": 8, "resolution": 16}
SETTINGS: dict[str, Any] = {
    **MODEL,
    "objective": "supervised",
    "steps": 4,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "tuning": {"evaluate_every": 4, "checkpoint_every": 2},
}


def _lab(folder: Path, data: Path) -> Lab:
    return Lab(folder, data.parent, Show(quiet=True))


def _run(**settings: Any) -> Run:
    return Run(Photos("shades", 8), {**SETTINGS, **settings})


def test_a_run_is_named_by_all_that_decides_it() -> None:
    run = _run()
    others = [
        run.but(steps=5),
        run.but(seed=1),
        run.but(position="none"),
        Run(Photos("shades", 9), SETTINGS),
        Run(Photos("shades", 8, shuffled=True), SETTINGS),
        Run(Photos("shades", 8), SETTINGS, start=run),
        Run(Photos("shades", 8), SETTINGS, start=run.but(seed=1)),
        Run(Photos("shades", 8), SETTINGS, teacher=run),
        Run(Photos("shades", 8, unlabelled=2), SETTINGS, teacher=run),
    ]
    keys = {one.key for one in (run, *others)}
    assert len(keys) == 10
    assert _run().key == run.key
    assert _run(tuning=dict(reversed(SETTINGS["tuning"].items()))).key == run.key


def test_fewer_pictures_are_among_more_and_none_is_searched_by(data: Path, tmp_path: Path) -> None:
    tables = []
    for per_class in (3, 8, None):
        write_table(Photos("shades", per_class), data, tmp_path / "split.csv", tmp_path / "table.csv")
        rows = [line.rsplit(",", 2) for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]
        tables.append({part: {path for path, _, own in rows if own == part} for part in ("train", "val")})
    few, more, every = tables
    assert len(few["train"]) == 6
    assert few["train"] < more["train"] < every["train"]
    assert few["val"] == every["val"]
    assert not every["train"] & every["val"]
    assert len(every["train"]) + len(every["val"]) == 40
    with pytest.raises(UserError, match="fewer than the 19"):
        write_table(Photos("shades", 19), data, tmp_path / "split.csv", tmp_path / "table.csv")


def test_a_list_that_no_longer_fits_is_named(data: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.csv"
    order(data, split)
    split.write_text(split.read_text().replace("dark/3.png", "dark/gone.png"))
    with pytest.raises(UserError, match=r"lists train/dark/gone\.png"):
        order(data, split)


def test_a_result_says_what_was_computed(data: Path, tmp_path: Path) -> None:
    there = _lab(tmp_path, data)
    result = there.result(_run(steps=40, tuning={"evaluate_every": 40}))
    assert result.test_images == len(result.right) == 20
    assert result.test_accuracy == result.right.mean()
    assert result.test_accuracy > 0.9  # dark and light are told apart
    assert result.seen == 40 * 8
    assert result.search_accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert there.result(_run(steps=40, tuning={"evaluate_every": 40})) == result


def test_a_student_learns_from_pictures_that_its_teacher_labelled(data: Path, tmp_path: Path) -> None:
    """Named wrongly, they are labelled all the same: nobody looked at their own labels."""
    teacher = Run(Photos("shades", 8), {**SETTINGS, "steps": 40, "tuning": {"evaluate_every": 40}})
    photos = Photos("shades", 8, unlabelled=7)
    student = Run(photos, SETTINGS, teacher=teacher)
    result = _lab(tmp_path, data).result(student)
    assert result.test_images == 20
    table = tmp_path / "runs" / f"{student.key}.pseudo.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    others = {str(path.absolute()) for path in hidden(photos, data, tmp_path / "splits" / "shades.csv")}
    said = {row["path"]: row for row in rows if row["shares"]}
    known = {row["path"] for row in rows if not row["shares"]}
    assert set(said) == others
    assert len(others) == 14
    assert not known & others
    assert all(row["split"] == "train" for row in said.values())
    assert {row["label"] for row in said.values()} == {"dark", "light"}
    cell = json.loads((tmp_path / "cells" / f"{student.key}.json").read_text())
    assert cell["run"]["teacher"]["settings"]["steps"] == 40
    with pytest.raises(UserError, match="fewer than the 8 and 11 asked for"):
        hidden(Photos("shades", 8, unlabelled=11), data, tmp_path / "splits" / "shades.csv")


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-3, [3e-4, 1e-3, 3e-3]),
        (1.5e-2, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
        (1e-4, [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]),
        (1.0, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
    ],
)
def test_a_rate_is_searched_until_the_best_is_between_two_others(
    best: float, tried: list[float], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[float] = set()

    def table(self: Lab, runs: dict[str, list[Run]]) -> dict[str, list[Result]]:
        rates = {label: [run.settings["learning_rate"] for run in own] for label, own in runs.items()}
        asked.update(*rates.values())
        near = {label: [1 - abs(np.log(best / rate)) / 100 for rate in own] for label, own in rates.items()}
        return {
            label: [Result({}, 0.0, 0.0, 0, 0.0, 0, 0, search_accuracy=one) for one in own]
            for label, own in near.items()
        }

    monkeypatch.setattr(Lab, "table", table)
    found = _lab(tmp_path, data).searched(_run(), (3e-4, 1e-3, 3e-3))
    assert sorted(asked) == pytest.approx(tried)
    assert found.settings["learning_rate"] == min(tried, key=lambda rate: abs(np.log(best / rate)))


def test_a_rate_that_diverges_is_not_the_best(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results(self: Lab, runs: list[Run]) -> list[Result]:
        rates = [run.settings["learning_rate"] for run in runs]
        if max(rates) > 5e-3:
            raise Diverged("The loss became nan.")
        return [Result({}, 0.0, 0.0, 0, 0.0, 0, 0, search_accuracy=rate) for rate in rates]

    monkeypatch.setattr(Lab, "results", results)
    there = _lab(tmp_path, data)
    assert there.searched(_run(), (3e-4, 1e-3, 3e-3)).settings["learning_rate"] == 3e-3
    with pytest.raises(UserError, match="became nan"):  # of a run that is no search
        there.result(_run())


def test_a_run_that_diverges_is_not_made_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, made = _lab(tmp_path, data), []

    def diverge(*words: Any, **settings: Any) -> None:
        made.append(settings["learning_rate"])
        raise Diverged("The loss became nan.")

    monkeypatch.setattr(lab, "pretrain", diverge)
    for _ in range(2):
        with pytest.raises(Diverged, match=f"became nan.*{_run().key}.json"):
            there.result(_run())
    assert made == [1e-2]
    monkeypatch.undo()
    assert there.searched(_run(), (1e-2, 1e-3)).settings["learning_rate"] == 1e-3


def test_a_rate_at_the_end_of_those_that_were_tried_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table(self: Lab, runs: dict[str, list[Run]]) -> dict[str, list[Result]]:
        return {
            label: [Result({}, 0.0, 0.0, 0, 0.0, 0, 0, search_accuracy=run.settings["learning_rate"]) for run in own]
            for label, own in runs.items()
        }

    monkeypatch.setattr(Lab, "table", table)
    there = _lab(tmp_path, data)
    there.searched(_run(), (3e-4, 1e-3, 3e-3))
    assert there.notes == [
        "Of the learning rates 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1 that were tried, 0.1 did best, at their end: a "
        "better one may lie beyond."
    ]


def test_runs_that_learned_nothing_are_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels dealt out at random: half of the test pictures are right, as many as by one answer."""
    monkeypatch.setitem(scale.SCALES, "small", Scale(MODEL, 2, 8, 1e-2, seeds=(0, 1)))
    usual = lab.write_table

    def shuffled(photos: Photos, *words: Any) -> None:
        usual(replace(photos, shuffled=True), *words)

    monkeypatch.setattr(lab, "write_table", shuffled)
    found = index.reproduce("patch-size", data, tmp_path / "out", page=tmp_path / "page.md", quiet=True)
    (note,) = found.notes
    assert re.fullmatch(r"\d of 6 runs cannot be told from always answering the commonest class \(50\.0 %\): .*", note)
    assert f"- Note: {note}" in (tmp_path / "page.md").read_text()


def test_a_default_that_decides_results_is_part_of_every_name() -> None:
    """What no run says is in the program: where it changes, ``REVISION`` is raised, and all runs are made again."""
    config, said = baseline.vit("small", 10), {}
    for objective in ("supervised", "mae", "masked-patches"):
        settings = PretrainSettings("", objective, steps=9, batch_size=8)
        training = to_dict(training_of(settings, None, objective, config, 99, False))
        said[objective] = [training, repr(policy_of(None, objective)), arguments_of(None, objective, config)]
    said["labels"] = [to_dict(PseudoLabels()), run_module.SEARCHED, run_module.SEARCHED_MOST, NOISE]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    assert (run_module.REVISION, digest) == (1, "4cf626f8335f5f03")


def test_the_student_is_held_against_both_its_teacher_and_its_like() -> None:
    def made(accuracy: float) -> list[Result]:
        return [
            Result(
                {"settings": {"steps": 1}, "seed": seed}, 1.0, 1.0, 1, 1.0, 1, 1, test_accuracy=accuracy + seed / 1e3
            )
            for seed in range(3)
        ]

    scores = {noisy_student.TEACHER: 0.5, noisy_student.LONG: 0.6, noisy_student.STUDENT: 0.58}
    scores |= {noisy_student.TRUE: 0.49, noisy_student.CALM: 0.7, noisy_student.BOTH: 0.8}
    found = noisy_student.findings({("ViT", part): made(score) for part, score in scores.items()}, (8, 7), "shades", "")
    words = ["holds", "does not hold", "does not hold", "holds", "holds"]
    assert [verdict.word for verdict in found.verdicts] == words
    assert found.verdicts[2].numbers == "-9.0 (-9.0 to -9.0); less its teacher -1.0 (-1.0 to -1.0)"
    assert found.rows[0][4].startswith("+8.0")
    assert found.rows[2][4] == ""


def test_shuffled_labels_are_dealt_out_at_random(data: Path, tmp_path: Path) -> None:
    """About half of each class is called the other; what settings are searched by keeps its labels."""
    write_table(Photos("shades", 8, shuffled=True), data, tmp_path / "split.csv", tmp_path / "table.csv")
    rows = [line.rsplit(",", 2) for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]
    own = [Path(path).parent.name == label for path, label, part in rows if part == "train"]
    assert sum(label == "dark" for _, label, part in rows if part == "train") == 8
    assert 4 <= sum(own) <= 12
    assert all(Path(path).parent.name == label for path, label, part in rows if part == "val")


def test_only_what_is_missing_is_made(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = _lab(tmp_path, data)
    made: list[str] = []
    usual = lab.make

    def follow(run: Run, folder: Path, data: Path) -> float:
        made.append(run.key)
        return usual(run, folder, data)

    monkeypatch.setattr(lab, "make", follow)
    pretraining = Run(Photos("shades", labels=False), {**MODEL, "objective": "mae", "steps": 2, "batch_size": 8})
    tuned = {name: value for name, value in SETTINGS.items() if name not in MODEL}
    runs = [_run(), Run(Photos("shades", 8), tuned, start=pretraining), _run().but(seed=1)]
    there.results(runs)
    assert made == [pretraining.key, *[run.key for run in runs]]
    made.clear()
    there.results(runs)
    assert made == []
    later = Run(Photos("shades", 8), {**tuned, "steps": 5}, start=pretraining)
    there.results([*runs, later])
    assert made == [later.key]
    cell = tmp_path / "cells" / f"{runs[0].key}.json"
    assert json.loads(cell.read_text())["run"]["seed"] == 0
    cell.write_text("{")
    with pytest.raises(UserError, match="remove it, and it is made again"):
        there.result(runs[0])


def test_a_killed_run_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    there = _lab(tmp_path / "killed", data)
    usual = lab.classify

    def stop(*words: Any) -> np.ndarray:
        raise Killed

    monkeypatch.setattr(lab, "classify", stop)
    with pytest.raises(Killed):
        there.result(_run())
    assert not list((tmp_path / "killed" / "cells").glob("*.json"))
    monkeypatch.setattr(lab, "classify", usual)
    before = os.stat(tmp_path / "killed" / "runs" / _run().key / "model" / "model.safetensors").st_mtime_ns
    result = there.result(_run())
    after = os.stat(tmp_path / "killed" / "runs" / _run().key / "model" / "model.safetensors").st_mtime_ns
    assert before == after
    assert result.correct == _lab(tmp_path / "whole", data).result(_run()).correct


def test_bits_come_back() -> None:
    right = np.random.default_rng(0).random(13) < 0.5
    made = Result({}, 0.0, 0.0, 0, 0.0, 0, 0, test_images=13, correct=packed(right))
    assert (made.right == right).all()


@pytest.mark.parametrize("name", sorted(index.EXPERIMENTS))
def test_an_experiment_from_words_to_a_section(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Scale(MODEL, 4, 8, 1e-2, seeds=(0, 1))
    monkeypatch.setitem(scale.SCALES, "small", toy)
    monkeypatch.setattr(masking, "PER_CLASS", 8)
    for one in (baseline, data_scale, noisy_student, versus_cnn):
        monkeypatch.setattr(one, "RATES", (1e-2,))
    monkeypatch.setattr(data_scale, "SHARES", (0.1, 0.2, 0.4))
    monkeypatch.setattr(data_scale, "FEW", (0.1, 0.2))
    monkeypatch.setattr(data_scale, "SEARCHED_AT", 0.2)
    monkeypatch.setattr(data_scale, "EPOCHS", 1)
    monkeypatch.setitem(noisy_student.PICTURES, "small", (8, 7))
    page = tmp_path / "docs" / "evidence.md"
    found = index.reproduce(name, data, tmp_path / "out", page=page, quiet=True)
    assert {result.run["seed"] for result in found.results} == {0, 1}
    assert all(len(row) == len(found.header) for row in found.rows)
    text = page.read_text()
    assert text.count(f"## {found.title}") == 1
    assert f"../out/{name}.png" in text
    assert f"`vitrail reproduce {name} --data shades --scale small`" in text
    assert (tmp_path / "out" / f"{name}.png").is_file()
    searched = name in ("data-scale", "head", "masking", "resolution")  # others have one rate here
    assert bool(found.others) == searched, "what is searched by or started from is told of too"
    assert ("to search settings and to start from" in text) == searched
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    index.reproduce(name, data, tmp_path / "out", page=page, quiet=True)
    assert page.read_text() == text
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}


def test_an_unknown_experiment_is_told_the_nearest(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the nearest is position-embeddings"):
        index.reproduce("position-embedding", data, tmp_path / "out")


def test_a_night_that_a_machine_slept_through_is_no_minutes_of_training(tmp_path: Path) -> None:
    timing = tmp_path / "training" / "timing.jsonl"
    timing.parent.mkdir()
    steps = [0.5] * 59 + [8 * 3600.0]
    timing.write_text("".join(json.dumps({"step": at, "seconds": own}) + "\n" for at, own in enumerate(steps, 1)))
    assert lab._minutes(tmp_path) == pytest.approx(0.5)
