"""Processes that make views: the result does not depend on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.toys import ALL_ON, Killed, run, same, stop_at


def test_two_workers_interrupted_end_where_none_uninterrupted_do(tmp_path: Path) -> None:
    workers = replace(ALL_ON, workers=2)
    whole = run(ALL_ON, tmp_path / "whole")
    with pytest.raises(Killed):
        run(workers, tmp_path / "a", stop_at(5))
    same(run(workers, tmp_path / "a"), whole)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
