"""What was asked, the recipe and the usual make one plan; every recipe is begun and stepped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.config import EncoderConfig, ViTConfig, variant
from vitrail.data.held import Pictures
from vitrail.data.order import generator
from vitrail.data.views import Views
from vitrail.errors import UserError
from vitrail.recipes.index import recipe, recipes
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.toy import toy
from vitrail.record import from_dict, to_dict
from vitrail.settings import OBJECTIVES, PretrainSettings
from vitrail.tasks import pretrain_job
from vitrail.tasks.pretrain_cost import memory, seconds
from vitrail.tasks.pretrain_plan import (
    KINDS,
    Plan,
    architecture_of,
    arguments_of,
    defaults,
    objective_of,
    policy_of,
    preprocessing_of,
    training_of,
    tuned,
    with_head,
)
from vitrail.tasks.pretrain_run import state_of
from vitrail.weights.store import read_model

SMALL = ViTConfig(EncoderConfig(6, 128, 4, 512), (4, 4), (32, 32))
TINY = ViTConfig(EncoderConfig(2, 24, 3, 96), (8, 8), (16, 16))


def planned(objective: str, config: ViTConfig = TINY, **options: Any) -> Plan:
    """Everything usual."""
    config = with_head(config, objective, 3)
    policy, arguments = policy_of(None, objective), defaults(objective, config)
    training = training_of(PretrainSettings("x", objective, **options), None, objective, TINY, 100, False)
    training, policy, arguments = tuned(training, policy, arguments, {})
    views = (None, policy) if isinstance(policy, tuple) else (policy, ())
    how = preprocessing_of(config.image_size, None)
    return Plan(objective, arguments, config, how, *views, training, 100, 0, (), "", {"a": "zero bytes"})


@pytest.mark.parametrize("whole", [each for each in recipes() if each.makes == "pretrain"], ids=lambda each: each.name)
def test_every_recipe_is_begun_and_stepped(
    whole: Recipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = toy(whole)
    monkeypatch.setattr(pretrain_job, "recipe_of", lambda name: small)
    monkeypatch.setattr(pretrain_job, "seconds_per_step", lambda *_: 0.01)
    found = vitrail.pretrain(photos, tmp_path / "run", recipe=whole.name, quiet=True)
    assert found is not None
    assert found.steps == 2
    assert np.isfinite(found.last["loss"])
    card, _ = read_model(tmp_path / "run" / "model")
    assert card.provenance["recipe"] == whole.name
    assert card.architecture.encoder == small.architecture.encoder
    assert card.architecture.head.prelogits == small.architecture.head.prelogits
    assert card.class_names == (("blue", "green", "red") if found.objective == "supervised" else ())


def test_a_recipe_s_settings_are_those_of_the_run() -> None:
    imagenet = recipe("vit-b16-imagenet")
    settings = training_of(
        PretrainSettings("x", recipe=imagenet.name), imagenet, "supervised", variant("ViT-B/16"), 1_280_000, True
    )
    assert (settings.steps, settings.batch_size, settings.learning_rate) == (93_750, 4096, 3e-3)
    assert (settings.weight_decay, settings.warmup, settings.clip, settings.schedule) == (0.3, 10_000, 1.0, "cosine")
    assert (settings.betas, settings.layer_decay, settings.average) == ((0.9, 0.999), 1.0, 0.0)
    assert arguments_of(imagenet, "supervised", imagenet.architecture) == {"smoothing": 0.0, "sigmoid": False}
    mae = recipe("mae-b16-imagenet")
    less = training_of(
        PretrainSettings("x", recipe=mae.name, batch_size=512), mae, "mae", variant("ViT-B/16"), 1_280_000, True
    )
    assert less.learning_rate == pytest.approx(3e-4), "linear in the batch"
    assert less.warmup == 40 * 2500
    assert arguments_of(mae, "mae", mae.architecture)["layers"] == 8
    assert objective_of(PretrainSettings("x", recipe="moco-b16-imagenet"), recipe("moco-b16-imagenet")) == "moco"
    with pytest.raises(UserError, match="is for fine-tuning"):
        objective_of(PretrainSettings("x", recipe="a"), recipe("vit-l16-jft300m-to-pets"))


def test_a_warm_up_longer_than_the_run_is_the_recipe_s_share_of_it() -> None:
    imagenet = recipe("vit-b16-imagenet")
    asked = PretrainSettings("x", recipe=imagenet.name, steps=100)
    settings = training_of(asked, imagenet, "supervised", variant("ViT-B/16"), 2000, False)
    assert settings.warmup == pytest.approx(10_000 / 93_750)


def test_sizes() -> None:
    def config(**asked: Any) -> ViTConfig:
        return architecture_of(PretrainSettings("x", "mae", **asked), None, None, asked.pop("side", 500))

    assert config() == variant("ViT-S/16")
    assert config(architecture="ViT-B/32", resolution=(64, 64)) == variant("ViT-B/32", (64, 64))
    own = config(layers=6, width=128, heads=4, patch=4, resolution=(32, 32))
    assert own == SMALL
    assert config(width=192).encoder == EncoderConfig(12, 192, 3, 768)
    for side, (patch, size) in {32: (4, 32), 28: (4, 28), 8: (1, 8), 96: (12, 96)}.items():
        found = architecture_of(PretrainSettings("x", "mae"), None, None, side)
        assert (found.patch, found.image_size) == ((patch, patch), (size, size)), side
        assert found.encoder == SMALL.encoder


def test_positions_and_pooling() -> None:
    def of(**asked: Any) -> ViTConfig:
        return architecture_of(PretrainSettings("x", "supervised", **asked), None, None, 500)

    assert of(position="relative-2d").position.kind == "relative-2d"
    shared = of(position="sinusoidal-1d:shared", pool="mean")
    assert (shared.position.kind, shared.position.place, shared.head.parts) == ("sinusoidal-1d", "shared", ("mean",))
    for asked, sentence in (
        ({"position": "rope"}, "the nearest is rope-2d"),
        ({"position": "learned-1d:stems"}, "the nearest is stem"),
        ({"position": "none:shared"}, "are not added to tokens"),
        ({"pool": "average"}, "There is no pooling 'average'"),
    ):
        with pytest.raises(UserError, match=sentence):
            of(**asked)


def test_arguments_of_a_narrow_model_are_narrower_and_of_a_wide_one_the_paper_s() -> None:
    wide = variant("ViT-B/16")
    expected = {"hidden": 0.75, "layers": 8, "width": 512, "heads": 16, "normalised": True}
    assert defaults("mae", wide) == expected
    assert defaults("mae", SMALL) == {**expected, "layers": 3, "width": 64, "heads": 4}
    assert (defaults("moco", wide)["hidden"], defaults("moco", SMALL)["hidden"]) == (4096, 682)
    assert defaults("moco", SMALL)["outputs"] == 256
    assert defaults("dino", wide)["outputs"] == 65_536
    assert defaults("masked-patches", wide) == {}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_plan_is_written_and_read(objective: str) -> None:
    plan = planned(objective)
    assert from_dict(Plan, to_dict(plan)) == plan


def test_tuning_changes_each_in_its_place() -> None:
    plan = planned("mae")
    changes = {"hidden": 0.5, "normalised": 0, "smallest_crop": 0.4, "betas": [0.8, 0.9], "clip": None}
    training, policy, arguments = tuned(plan.training, plan.policy, plan.arguments, changes)
    assert arguments == {**plan.arguments, "hidden": 0.5, "normalised": False}
    assert policy == replace(plan.augmentation, smallest_crop=0.4)  # type: ignore[type-var]
    assert training == replace(plan.training, betas=(0.8, 0.9), clip=None)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_views_are_the_objective_s(objective: str) -> None:
    """They are made without it, since it holds models that processes should not be sent."""
    plan = planned(objective)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    pixels = np.asarray(image)
    pictures = Pictures([Path("a")], None, pixels.reshape(-1), np.array([[0, 20, 24]]))
    objective_itself = state_of(plan, None, torch.device("cpu"))[1]
    made = Views(pictures, plan.preprocessing, plan.policy)(0, generator(0, "view", 0, 0))
    assert torch.equal(made, objective_itself.views(image, generator(0, "view", 0, 0)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_planned_can_be_begun_and_its_memory_is_told(objective: str) -> None:
    plan = planned(objective)
    state, begun = state_of(plan, None, torch.device("cpu"))
    assert isinstance(begun, KINDS[objective][0])  # type: ignore[arg-type]
    needed, own, more = memory(plan, 1000)
    assert own == sum(parameter.numel() for parameter in state.model.parameters())
    assert own + more == sum(parameter.numel() for parameter in state.learner.parameters())
    assert needed > 1000 + 4 * (own + more)
    assert memory(plan, 3000)[0] - needed == 2000


def test_memory_counts_what_the_encoder_sees() -> None:
    """MAE with a decoder next to nothing costs about its visible share."""
    plan = planned("mae", SMALL)
    plan = replace(plan, arguments={**plan.arguments, "layers": 1, "width": 4, "heads": 1})
    whole = replace(plan, objective="masked-patches", arguments={})

    def of_a_batch(plan: Plan) -> float:
        one = replace(plan, training=replace(plan.training, batch_size=1))
        return memory(plan, 0)[0] - memory(one, 0)[0]

    assert 17 / 65 < of_a_batch(plan) / of_a_batch(whole) < 17 / 65 + 0.05


def test_time_counts_evaluations() -> None:
    plan = replace(planned("supervised", steps=100, batch_size=10), held_out=30)
    plan = replace(plan, training=replace(plan.training, evaluate_every=25))
    assert seconds(plan, 2.0) == pytest.approx(100 * 2.0 + 4 * 30 * 0.2 / 3)
    assert seconds(plan, 2.0, done=90) == pytest.approx(10 * 2.0 + 30 * 0.2 / 3)
