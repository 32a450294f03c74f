"""Every experiment can be made at every scale, and the paper's is the paper's: plans alone, nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from vitrail.config import Architecture, ModelCard, Preprocessing, ViTConfig
from vitrail.cost import flops, parameters
from vitrail.experiments import inductive_bias
from vitrail.experiments.baseline import supervised
from vitrail.experiments.index import EXPERIMENTS
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Result, Run, packed
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.recipes.index import recipe as recipe_of
from vitrail.record import to_dict
from vitrail.report.terminal import Show
from vitrail.settings import PretrainSettings, TrainSettings
from vitrail.tasks.classifier import Classifier
from vitrail.tasks.pretrain_plan import (
    architecture_of,
    arguments_of,
    objective_of,
    policy_of,
    training_of,
    tuned,
    with_head,
)

IMAGENET = 1_280_000
PER_CLASS = ["a.jpg"] * 5100
"""The training pictures of a class; more than ImageNet has, for settings that ask for CIFAR-10's."""


@dataclass(frozen=True)
class Plan:
    """What ``vitrail.pretrain`` would do."""

    architecture: Architecture
    training: TrainSettings
    policy: Any
    arguments: dict[str, Any]


def plan(settings: Mapping[str, Any], start: Architecture | None = None) -> Plan:
    """As a pretraining job plans it; raises where it would."""
    side = settings.get("resolution")
    asked = PretrainSettings("", **{**settings, "resolution": None if side is None else (side, side)})
    recipe = None if asked.recipe is None else recipe_of(asked.recipe)
    objective = objective_of(asked, recipe)
    card = None if start is None else ModelCard(start, Preprocessing(start.image_size))
    config = architecture_of(asked, recipe, card, 224)
    training, policy, arguments = tuned(
        training_of(asked, recipe, objective, config, IMAGENET, False),
        policy_of(recipe, objective),
        arguments_of(recipe, objective, config),
        asked.tuning,
    )
    return Plan(with_head(config, objective, 1000), training, policy, arguments)


@dataclass(frozen=True)
class Planned(Lab):
    """Plans what a lab would make, and makes results up."""

    plans: dict[str, tuple[Run, Plan]] = field(default_factory=dict, compare=False)

    def results(self, runs: Sequence[Run]) -> list[Result]:
        return [self._planned(run) for run in runs]

    def measured(self, run: Run, what: str, measure: Callable[[Classifier], Mapping[str, float]]) -> dict[str, float]:
        return dict.fromkeys(MEASURED, 0.1 + run.seed / 100)

    def _order(self, data: str) -> dict[str, list[str]]:
        return {str(label): PER_CLASS for label in range(1000)}

    def _planned(self, run: Run) -> Result:
        for before in (run.start, run.teacher):
            if before is not None and before.key not in self.plans:
                self._planned(before)
        start = None if run.start is None else self.plans[run.start.key][1].architecture
        made = plan(run.settings, start)
        self.plans[run.key] = run, made
        right = np.random.default_rng(run.seed).random(100) < 0.5
        config = made.architecture
        return Result(
            to_dict(run),
            1.0,
            1.0,
            parameters(config),
            float(flops(config)),
            config.sequence,
            made.training.steps * made.training.batch_size,
            *(0.5, float(right.mean()), 100, packed(right)),
        )


MEASURED = [
    *(f"{when}, {what}" for when in ("random", "trained") for what in ("error", "first spread", "last spread")),
    *(f"{when}, {what}" for when in ("random", "trained") for what in ("own share", "spread beyond")),
    *(
        f"{what}{where}"
        for what in (inductive_bias.WHOLE, inductive_bias.PART)
        for where in ("", inductive_bias.INSIDE)
    ),
]


@pytest.mark.parametrize("size", get_args(ScaleName))
@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_run_can_be_made(name: str, size: ScaleName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductive_bias, "images_below", lambda folder: [])
    monkeypatch.setattr(inductive_bias, "test_folder", lambda root: root)
    made = Planned(tmp_path, tmp_path, Show(quiet=True))
    found = EXPERIMENTS[name](made, "imagenet", size, "")
    assert made.plans
    assert "##" in found.markdown("figure.png")
    assert {run.seed for run, _ in made.plans.values()} == set(SCALES[size].seeds)


def test_paper_scale_trains_as_the_paper_says() -> None:
    """Table 3, whose recipe names a source for every setting."""
    found, recipe = plan(SCALES["paper"].settings()), recipe_of("vit-b16-imagenet")
    papers = plan({"objective": "supervised", "recipe": recipe.name})
    assert found.architecture == recipe.architecture
    assert (found.training.steps, found.training.batch_size) == (recipe.steps(), recipe.batch_size)
    for name in ("optimizer", "learning_rate", "betas", "weight_decay", "schedule", "clip", "average"):
        assert getattr(found.training, name) == getattr(papers.training, name), name
    assert found.training.warmup * found.training.steps == recipe.warmup_steps() == 10_000
    assert found.training.betas == (0.9, 0.999)
    assert found.arguments == papers.arguments
    assert found.arguments["smoothing"] == 0.0
    shown = ("smallest_crop", "flip", "operations", "erase")
    assert [getattr(found.policy, name) for name in shown] == [getattr(papers.policy, name) for name in shown]
    assert found.policy.mixing == 0 or not (found.policy.mixup or found.policy.cutmix)


def test_paper_scale_goes_on_as_the_paper_says() -> None:
    """Table 4."""
    start = plan(SCALES["paper"].settings()).architecture
    found, recipe = plan(supervised("paper", {}, 20_000), start), recipe_of("vit-l16-imagenet21k-to-imagenet")
    assert found.training.optimizer == recipe.optimizer == "sgd"
    assert found.training.batch_size == recipe.batch_size
    assert found.training.weight_decay == recipe.weight_decay
    assert found.training.schedule == recipe.schedule
    assert (found.training.warmup, found.training.clip) == (recipe.warmup.amount, recipe.clip)
    assert found.training.average == pytest.approx(1 / (1 - (recipe.average or 0)))
    assert found.architecture.head.prelogits is None
    assert isinstance(found.architecture, ViTConfig)
    assert found.architecture.encoder.dropout == recipe.architecture.encoder.dropout == 0.0
    assert found.arguments["smoothing"] == recipe.label_smoothing
    assert found.policy.smallest_crop == 0.05
    assert found.training.steps * found.training.batch_size == 20_000 * SCALES["paper"].batch_size


def test_paper_scale_hides_patches_as_the_paper_says() -> None:
    """Appendix B.1.2."""
    usual = SCALES["paper"]
    plain = {name: value for name, value in usual.settings().items() if name not in ("objective", "tuning")}
    found = plan({**plain, "objective": "masked-patches", **usual.masked})
    recipe = recipe_of("vit-b16-jft300m-masked-patches")
    assert (found.training.steps, found.training.learning_rate) == (recipe.steps(), recipe.learning_rate)
    assert found.training.weight_decay == recipe.weight_decay
