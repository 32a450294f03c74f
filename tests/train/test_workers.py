"""Processes that make views: the result does not depend on them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.toys import ALL_ON, LABELS, Killed, Modular, View, begin, run, same, score, stop_at
from vitrail.errors import UserError
from vitrail.train.loop import train
from vitrail.train.state import State


def test_two_workers_interrupted_end_where_none_uninterrupted_do(tmp_path: Path) -> None:
    workers = replace(ALL_ON, workers=2)
    whole = run(ALL_ON, tmp_path / "whole")
    with pytest.raises(Killed):
        run(workers, tmp_path / "a", stop_at(5))
    same(run(workers, tmp_path / "a"), whole)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@dataclass(frozen=True)
class Dying(View):
    """The process that makes the view of sample 7 is killed, while there is a file that says so."""

    flag: str = ""

    def __call__(self, sample: int, chance: np.random.Generator) -> Tensor:
        """(3, 16, 16)."""
        if sample == 7 and Path(self.flag).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sample, chance)


def test_a_killed_worker_is_a_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    flag, settings = tmp_path / "flag", replace(ALL_ON, workers=1)
    view = Dying(flag=str(flag))

    def attempt(limit: int = 99) -> State:
        objective = Modular()
        state = begin(settings, objective)
        train(
            state,
            objective,
            view,
            LABELS,
            settings,
            torch.device("cpu"),
            folder=tmp_path / "run",
            evaluate=score,
            tell=stop_at(limit),
        )
        return state

    with pytest.raises(Killed):
        attempt(4)
    flag.touch()
    with pytest.raises(UserError, match="A process that prepares pictures was killed"):
        attempt()
    flag.unlink()
    same(attempt(), run(ALL_ON))
