"""Lines of JSON that go on where a checkpoint was."""

from __future__ import annotations

import json
from pathlib import Path

from vitrail.train.log import Log


def test_lines_are_written_at_a_flush_and_cut_to_a_length(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.add({"step": 1, "loss": 0.1 + 0.2, "words": "Vögel"})
    assert not log.path.exists()
    length = log.flush()
    assert length == log.path.stat().st_size
    first = log.path.read_bytes()
    assert json.loads(first) == {"step": 1, "loss": 0.1 + 0.2, "words": "Vögel"}
    log.add({"step": 2, "loss": float("nan"), "norm": float("inf")})
    log.flush()
    assert json.loads(log.path.read_text().splitlines()[1]) == {"step": 2, "loss": None, "norm": None}
    again = Log(log.path)
    assert again.go_back(length)
    assert log.path.read_bytes() == first
    again.add({"step": 2})
    assert again.flush() == length + len('{"step": 2}\n')
    assert not Log(log.path).go_back(10_000)


def test_what_an_interrupted_flush_left_is_written_over(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.add({"step": 1})
    log.flush()
    with log.path.open("ab") as file:
        file.write(b'{"ste')
    log.add({"step": 2})
    log.flush()
    assert log.path.read_text() == '{"step": 1}\n{"step": 2}\n'
