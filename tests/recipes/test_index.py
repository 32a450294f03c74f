"""All recipes: their names, their headings, and that their architectures are what they say."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict

import pytest
import torch

from vitrail import cost
from vitrail.cli.options import assignments
from vitrail.config import is_variant, variant
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.recipes.index import RECIPES, recipe, recipes
from vitrail.recipes.recipe import PAPERS, Recipe
from vitrail.settings import Augmentation, TrainSettings
from vitrail.tasks.training import tune

ALL = recipes()
by_name = pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)


def test_names() -> None:
    """Each is called by its function's name: model, data, and what it is fine-tuned on."""
    assert [each.name for each in ALL] == list(RECIPES)
    assert len({each.name for each in ALL}) == len(ALL) == 35
    for each in ALL:
        assert re.fullmatch(
            r"(vit|mae|moco)-[a-z]\d+-[a-z0-9]+(-\d+ep|-masked-patches)?(-to-[a-z0-9]+)?", each.name
        ) or (each.paper is None and each.name.startswith("small-"))
        assert ("-to-" in each.name) == (each.makes == "finetune") == (each.start is not None)
        if each.start is not None:
            start = recipe(each.start)
            assert each.name.startswith(f"{start.name}-to-")
            assert (start.makes, start.variant) == ("pretrain", each.variant)


@by_name
def test_each_is_headed_by_command_hardware_and_accuracy(each: Recipe) -> None:
    heading = inspect.cleandoc(RECIPES[each.name].__doc__ or "")
    words = " ".join(heading.split())
    assert " ".join(heading.partition("\n\n")[0].split()) == f"``{each.command}``"
    assert f"Hardware: {each.hardware}" in words
    assert f"Accuracy: {each.accuracy}" in words
    assert ("(assumed)" in words) == ("hardware" in each.assumed)
    assert ("nverified" in words) == ("reported" in each.unverified and bool(each.reported))


@by_name
def test_architecture_at_true_width(each: Recipe) -> None:
    config = each.architecture
    with torch.device("meta"):
        count = sum(tensor.numel() for tensor in build(config).parameters())
    assert count == cost.parameters(config)
    if is_variant(each.variant):
        published = variant(each.variant)
        for name in ("layers", "width", "mlp_width", "norm_eps"):
            assert getattr(config.encoder, name) == getattr(published.encoder, name), name
        assert (config.encoder.heads == published.encoder.heads) == (each.name != "moco-s16-imagenet")
        assert config.cell == published.cell


@by_name
def test_settings_agree_with_each_other(each: Recipe) -> None:
    labelled, head = each.objective.kind == "supervised", each.architecture.head
    assert head.classes == (each.data.classes or 0 if labelled else 0)
    assert (each.betas is None) == (each.optimizer == "sgd") == (each.momentum is not None)
    assert each.warmup_steps() < each.steps()
    assert each.searched is None or each.searched[0] < each.learning_rate < each.searched[1]
    assert each.paper is None or each.paper in PAPERS


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="no recipe 'ViT-B16-ImageNet-21k'; the nearest is vit-b16-imagenet21k"):
        recipe("ViT-B16-ImageNet-21k")


@pytest.mark.parametrize("each", [one for one in ALL if one.makes == "finetune"], ids=lambda one: one.name)
def test_finetune_understands_every_word_of_a_command(each: Recipe) -> None:
    words = each.command.split()
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert set(options) == {"--weights", "--method", "--resolution", "--batch-size", "--epochs", "--set"}
    tuning = assignments([value for name, value in zip(words[3::2], words[4::2], strict=True) if name == "--set"])
    settings, augmentation, _ = tune(TrainSettings(each.steps(), each.batch_size), tuning)
    assert (settings.optimizer, settings.schedule) == (each.optimizer, each.schedule)
    assert settings.learning_rate == each.learning_rate
    assert settings.weight_decay == each.weight_decay
    assert settings.clip == (each.clip or 0)
    assert settings.average == pytest.approx(0 if each.average is None else 1 / (1 - each.average))
    assert each.views is not None
    assert augmentation == Augmentation(**asdict(each.views))
    epochs, images = int(options["--epochs"]), each.data.images
    assert 0 <= epochs * images / each.batch_size - each.steps() <= images / each.batch_size + 1
