"""A run folder is read in whatever state it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.errors import UserError
from vitrail.report.run import Alike, read_run

HELD_OUT = {
    "event": "held-out",
    "images": 4,
    "top1": 0.75,
    "interval": [0.3, 0.95],
    "per_class": [
        {"name": "a", "correct": 1, "total": 2, "accuracy": 0.5, "interval": [0.1, 0.9]},
        {"name": "b", "correct": 2, "total": 2, "accuracy": 1, "interval": [0.3, 1]},
    ],
    "confusion": [[1, 1], [0, 2]],
    "of a later version": {"anything": 1},
}
FILES = ("config.yaml", "metrics.jsonl", "split.csv", "predictions.csv", "suspects.csv", "near_duplicates.csv")


def write(folder: Path, name: str, *lines: str) -> None:
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path)


def test_a_full_run_is_read(tmp_path: Path) -> None:
    write(tmp_path, "config.yaml", "vitrail: 0.1.0", "finetune:", "  data: photos", "  seed: 3")
    events = [
        {"event": "candidate", "parts": ["class"], "layers": 2, "strength": 1e-3, "accuracy": 0.9, "log_loss": 0.4},
        {"event": "epoch", "epoch": 1, "step": 9, "loss": 2, "train_accuracy": 0.5, "lr": 1e-4},
        {"event": "unreadable", "path": "/photos/a/x.jpg", "reason": "zero bytes"},
        {"event": "unheard-of"},
        HELD_OUT,
    ]
    write(tmp_path, "metrics.jsonl", *map(json.dumps, events))
    write(tmp_path, "split.csv", "path,label,split", "/photos/a/1.jpg,a,train", "/photos/a/2.jpg,a,val")
    write(tmp_path, "predictions.csv", "path,label,predicted,confidence", '"/photos/a/2,\u2028.jpg",a,b,0.5')
    write(tmp_path, "suspects.csv", "path,label,suggested,given,score", "/photos/a/1.jpg,a,b,0.01,0.98")
    write(tmp_path, "near_duplicates.csv", "path_a,path_b,similarity,label_a,label_b,parts", "/x,/y,0.99,a,b,train/val")
    run = read_run(tmp_path)
    assert run.problems == {}
    assert run.settings == {"data": "photos", "seed": 3}
    assert run.result is not None
    assert run.result.per_class[1].accuracy == 1.0
    assert run.result.minutes is None
    assert [candidate.layers for candidate in run.candidates] == [2]
    assert run.epochs[0].val_accuracy is None
    assert run.unreadable[0].reason == "zero bytes"
    assert run.counts == {"a": (1, 1)}
    assert run.predictions[0].path == "/photos/a/2,\u2028.jpg"
    assert run.predictions[0].unscaled is None
    assert run.suspects[0].score == 0.98
    assert run.near_duplicates[0].across
    assert run.shown("/photos/a/sub/1.jpg") == "sub/1.jpg"
    assert run.shown("/photos/ab/1.jpg") == "/photos/ab/1.jpg"


def test_a_pair_within_one_part_is_not_across() -> None:
    assert not Alike("", "", 1.0, "", "", "val/val").across


def test_an_older_run_says_what_it_lacks(tmp_path: Path) -> None:
    write(tmp_path, "metrics.jsonl", json.dumps(HELD_OUT))
    run = read_run(tmp_path)
    assert run.result is not None
    assert set(run.problems) == set(FILES) - {"metrics.jsonl"}
    assert run.problems["suspects.csv"] == "This run has no suspects.csv."


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("metrics.jsonl", '{"event": "held-out", "images"', "has damaged lines"),
        ("metrics.jsonl", json.dumps({**HELD_OUT, "top1": "much"}), "field 'top1'"),
        ("metrics.jsonl", json.dumps({**HELD_OUT, "confusion": [[1]]}), "does not fit its classes"),
        ("config.yaml", "finetune: [", "is damaged"),
        ("predictions.csv", "path,label,predicted,confidence\n/x,a,b,high", "is damaged"),
        ("predictions.csv", "path,label\n/x,a", "is damaged"),
    ],
)
def test_damage_is_named_and_leaves_the_rest(name: str, text: str, complaint: str, tmp_path: Path) -> None:
    write(tmp_path, "config.yaml", "finetune: {data: photos}")
    write(tmp_path, name, text)
    run = read_run(tmp_path)
    assert complaint in " ".join(run.problems.values())
    assert run.result is None
    assert run.predictions == []


@given(name=st.sampled_from(FILES), content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_content_of_a_file_is_too_odd(name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("finetune: {}")
    (folder / name).write_bytes(content)
    assert isinstance(read_run(folder).problems, dict)
