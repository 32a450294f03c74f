"""The loop: what it repeats to the bit, what it refuses, what it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.train.toys import LABELS, STILL, Modular, Step, View, begin, run
from vitrail.config import Preprocessing
from vitrail.errors import UserError
from vitrail.objectives.supervised import Supervised
from vitrail.settings import Augmentation, TrainSettings
from vitrail.train.loop import train
from vitrail.train.state import State
from vitrail.train.trainable import train_only

PLAIN = Augmentation(mixup=0, cutmix=0, operations=0, erase=0)


def supervised(policy: Augmentation | None = None, smoothing: float = 0.1) -> Supervised:
    return Supervised(Preprocessing((16, 16)), policy or Augmentation(), smoothing)


def test_the_same_settings_are_the_same_run_to_the_bit() -> None:
    settings = TrainSettings(12, 8, learning_rate=1e-3)
    first: list[Step] = []
    again: list[Step] = []
    different: list[Step] = []
    one, other = run(settings, tell=first.append), run(settings, tell=again.append)
    assert [step.done for step in first] == list(range(1, 13))
    assert first == again
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    run(replace(settings, seed=1), tell=different.append)
    assert [step.loss for step in different] != [step.loss for step in first]


def test_it_learns() -> None:
    steps: list[Step] = []
    settings = TrainSettings(60, 21, learning_rate=3e-3)
    run(settings, tell=steps.append, objective=supervised(PLAIN, 0.0), evaluate=None, policy=PLAIN)
    assert np.mean([step.loss for step in steps[-5:]]) < 0.4 * steps[0].loss
    assert steps[-1].metrics["accuracy"] > steps[0].metrics["accuracy"]


def test_a_loss_that_is_no_number_stops_with_a_sentence() -> None:
    class Broken(Supervised):
        def loss(
            self, model: nn.Module, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
        ) -> tuple[Tensor, dict[str, float]]:
            value, metrics = super().loss(model, views, labels, chances)
            return value * float("nan"), metrics

    with pytest.raises(UserError, match="The loss became nan at step 1: lower the learning rate"):
        run(TrainSettings(3, 8), objective=Broken(Preprocessing((16, 16)), Augmentation()), evaluate=None)


class Slope(Supervised):
    """A gradient known in advance, of one weight."""

    def loss(
        self, model: nn.Module, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        return 3.0 * model.bias[0] + 4.0 * model.bias[1] + 0.0 * model.weight.sum(), {}  # type: ignore[index, operator, union-attr]


@pytest.mark.parametrize(("clip", "norm"), [(1.0, 1.0), (None, 5.0), (0.0, 5.0), (10.0, 5.0)])
def test_the_gradient_is_clipped_by_its_global_norm(clip: float | None, norm: float) -> None:
    settings = TrainSettings(
        1, 8, optimizer="sgd", learning_rate=0.1, clip=clip, warmup=0.0, schedule="constant", weight_decay=0.0
    )
    objective, model = Slope(Preprocessing((16, 16)), PLAIN), nn.Linear(2, 2)
    before, steps = model.bias.detach().clone(), list[Step]()
    state = State.start(model, objective.modules, settings)
    train(state, objective, View(), LABELS, settings, torch.device("cpu"), tell=steps.append)
    assert torch.allclose(before - model.bias.detach(), 0.1 * norm * torch.tensor([0.6, 0.8]), atol=1e-6)
    assert steps[0].gradient_norm == pytest.approx(5.0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_accumulated_gradients_are_those_of_the_large_batch(count: int) -> None:
    """Batches of six, eight and seven, so that pieces are unequal; no dropout, no batch norm."""
    settings = TrainSettings(6, 8, learning_rate=1e-3, optimizer="sgd", average=0.3)
    whole: list[Step] = []
    cut: list[Step] = []
    options = {"objective": supervised(Augmentation(mixing=0.7)), "evaluate": None, "config": STILL}
    one = run(settings, tell=whole.append, **options)  # type: ignore[arg-type]
    other = run(replace(settings, accumulate=count), tell=cut.append, **options)  # type: ignore[arg-type]
    assert {step.images for step in whole} == {6, 7, 8}
    for name, tensor in one.tensors().items():
        assert torch.allclose(tensor, other.tensors()[name], atol=1e-6), name
    assert [step.loss for step in cut] == pytest.approx([step.loss for step in whole], abs=1e-6)
    assert [step.metrics for step in cut] == [pytest.approx(step.metrics) for step in whole]


@pytest.mark.parametrize("how", ["accumulate", "repeats"])
def test_what_compares_a_batch_is_neither_cut_nor_shown_a_sample_twice(how: str) -> None:
    class Contrasting(Modular):
        in_batch = True

    with pytest.raises(UserError, match="set accumulate and repeats to 1"):
        run(TrainSettings(2, 8, **{how: 2}), objective=Contrasting())


def test_repeated_views_of_a_sample_differ_and_have_its_label() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Onlooker(Modular):
        def loss(
            self, model: nn.Module, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
        ) -> tuple[Tensor, dict[str, float]]:
            seen.append((views, labels))
            return super().loss(model, views, labels, chances)

    run(TrainSettings(2, 12, repeats=3), objective=Onlooker(Augmentation(mixing=0.0)), evaluate=None)
    for views, labels in seen:
        for first, second in ((0, 1), (1, 2)):
            parts, own = views.chunk(3), labels.chunk(3)
            assert torch.equal(own[first], own[second])
            assert not torch.equal(parts[first], parts[second])
    with pytest.raises(UserError, match="choose a multiple of 6"):
        TrainSettings(2, 8, repeats=3)


def test_going_back_needs_a_folder() -> None:
    with pytest.raises(UserError, match="needs a folder"):
        run(TrainSettings(2, 8, on_spike="rollback", checkpoint_every=1))


def test_layers_below_do_not_move() -> None:
    settings = TrainSettings(4, 8, learning_rate=1e-2)
    objective = supervised()
    state = begin(settings, objective)
    model = state.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = train_only(model, model.depth, lowest=3)  # type: ignore[arg-type]
    assert count == sum(p.numel() for n, p in model.named_parameters() if "blocks.2" in n or n[:4] in ("norm", "clas"))
    state = type(state).start(model, objective.modules, settings, model.depth, 4)  # type: ignore[arg-type]
    train(state, objective, View(), LABELS, settings, torch.device("cpu"))
    for name, tensor in state.averaged().items():
        frozen = not ("blocks.2" in name or name.startswith(("norm.", "classifier.")))
        assert torch.equal(tensor, before[name]) == frozen, name


def test_an_objectives_modules_learn_and_are_averaged_with_the_model() -> None:
    objective = Modular()
    first = {name: tensor.clone() for name, tensor in objective.modules.state_dict().items()}
    state = run(TrainSettings(4, 8, learning_rate=1e-2, average=0.9), objective=objective)
    for name, tensor in objective.modules.state_dict().items():
        assert not torch.equal(tensor, first[name]) or name == "follower.bias", name
    assert "average.objective.norm.weight" in state.tensors()
    assert "average.objective.follower.weight" not in state.tensors()
    assert set(state.averaged()) == set(state.model.state_dict())


def test_evaluations_that_get_no_better_end_it(tmp_path: Path) -> None:
    scores = iter([float("nan"), 0.5, 0.4, float("nan"), 0.2, 0.9])
    settings = TrainSettings(20, 8, evaluate_every=2, patience=3, checkpoint_minutes=0, keep=1)
    state = run(settings, tmp_path, evaluate=lambda state: (next(scores), {}))
    assert state.step == 10
    assert (state.decisions.best, state.decisions.best_step) == (0.5, 4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000010"]
    assert run(settings, tmp_path, evaluate=None).step == 10, "what has ended is not gone on with"
