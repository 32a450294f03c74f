"""What a step costs: operations counted to the number, time that adds up, a trace that can be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrail.config import EncoderConfig, HeadConfig, Preprocessing, ViTConfig
from vitrail.cost import flops
from vitrail.model.build import build
from vitrail.model.compiling import compile_blocks
from vitrail.model.heads import Pooling
from vitrail.objectives.supervised import Supervised
from vitrail.settings import Augmentation, TrainSettings
from vitrail.train import profile
from vitrail.train.loop import train
from vitrail.train.profile import COMPILED, OTHER, PARTS, STEPS, WAITING, Profiler
from vitrail.train.state import State

CONFIG = ViTConfig(EncoderConfig(2, 24, 3, 48), (8, 8), (16, 16), head=HeadConfig(classes=3))


def _follow(steps: int, profiler: Profiler, compiled: bool = False) -> None:
    settings = TrainSettings(steps=steps, batch_size=4)
    model = build(CONFIG)
    if compiled:
        compile_blocks(model)
    objective = Supervised(Preprocessing((16, 16)), Augmentation(mixing=0.0))
    state = State.start(model, objective.modules, settings, model.depth)

    def view(sample: int, chance: np.random.Generator) -> Tensor:
        return torch.from_numpy(chance.standard_normal((3, 16, 16), dtype=np.float32))

    with profiler as follow:
        train(state, objective, view, torch.arange(8) % 3, settings, torch.device("cpu"), tell=follow)


def test_a_step_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SIDE", 64)
    monkeypatch.setattr(Pooling, "read", None)  # every token through every block
    profiler = Profiler(torch.device("cpu"), bf16=False)
    _follow(STEPS, profiler)
    found = profiler.accounts()
    # Forth, and twice that back, but that pixels have no gradient: the patch embedding goes back once.
    # Fused attention computes its logits again on the way back.
    embedding, logits = 2 * 4 * (8 * 8 * 3) * 24, 2 * 2 * 5 * 5 * 24
    assert found.flops == 4 * (3 * flops(CONFIG) - embedding + logits)
    assert set(found.parts) == {*PARTS, OTHER, COMPILED, WAITING}
    assert found.parts[COMPILED] == 0
    assert found.parts["matrix products"] > 0
    assert found.parts["optimiser and averages"] > 0
    assert found.seconds > 0
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert found.share == pytest.approx(found.flops / found.seconds / found.limit)
    profiler.write(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler here")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_what_is_compiled_together_is_a_part_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SIDE", 64)
    profiler = Profiler(torch.device("cpu"), bf16=False)
    _follow(STEPS, profiler, compiled=True)
    found = profiler.accounts()
    assert found.parts[COMPILED] > 0
    assert found.parts["matrix products"] > 0
    assert sum(found.parts.values()) == pytest.approx(found.seconds)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_run_that_ends_early_leaves_nothing_running(steps: int) -> None:
    _follow(steps, Profiler(torch.device("cpu"), bf16=False))
    with torch.profiler.profile():  # which would refuse beside another
        torch.ones(2) @ torch.ones(2)
