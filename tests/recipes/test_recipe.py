"""A setting without a source is no recipe; what follows from one."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from vitrail.errors import UserError
from vitrail.recipes.index import recipe, recipes
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.source import Source, stated


def _without(sources: tuple[Source, ...], setting: str) -> tuple[Source, ...]:
    return tuple(replace(s, settings=tuple(name for name in s.settings if name != setting)) for s in sources)


@pytest.mark.parametrize("name", ["vit-b16-imagenet", "vit-h14-jft300m-to-cifar10", "mae-b16-imagenet"])
def test_every_setting_needs_a_source(name: str) -> None:
    whole = recipe(name)
    assert len(whole.settings()) > 20
    for setting in whole.settings():
        with pytest.raises(UserError, match=rf"recipe {name} says of {setting} neither"):
            replace(whole, sources=_without(whole.sources, setting))


def test_a_source_is_for_one_setting_that_there_is() -> None:
    whole = recipe("vit-b16-imagenet")
    with pytest.raises(UserError, match="source for momentum, which is none of its settings"):
        replace(whole, sources=(*whole.sources, stated("table 9", "momentum")))
    with pytest.raises(UserError, match="more than one source for clip"):
        replace(whole, sources=(*whole.sources, stated("table 9", "clip")))


def test_a_new_setting_asks_for_its_source() -> None:
    whole = recipe("vit-b16-imagenet")
    with pytest.raises(UserError, match="says of searched neither"):
        replace(whole, searched=(0.1, 1.0))


def test_no_field_escapes() -> None:
    """Every field of the class is a setting, or says what the recipe is called and where it is from."""
    aside = {"name", "makes", "paper", "where", "sources"}
    split = {"architecture": {"position", "head", "dropout", "drop_path", "resolution"}}
    split["views"] = {"augmentation", "mixup", "cutmix", "mixing"}
    named = {setting for each in recipes() for setting in each.settings()}
    for entry in fields(Recipe):
        assert entry.name in aside or split.get(entry.name, {entry.name}) <= named, entry.name


def test_assumed_unverified_and_stated_are_all_there_is() -> None:
    for each in recipes():
        stands = {name for source in each.sources if source.kind == "stated" for name in source.settings}
        parts = (set(each.assumed), set(each.unverified), stands)
        assert set.union(*parts) == set(each.settings())
        assert sum(map(len, parts)) == len(each.settings())


def test_the_description_marks_what_is_assumed() -> None:
    each = recipe("vit-l16-imagenet21k")
    rows = {name: (value, where) for name, value, where in each.describe()}
    assert rows.keys() == each.settings().keys()
    assert rows["weight_decay"] == ("0.03", "table 3")
    assert rows["duration"][0] == "90 epochs (307,617 steps)"
    for name, (_, where) in rows.items():
        assert where.startswith("assumed: ") == (name in each.assumed)
        assert where.startswith("unverified: ") == (name in each.unverified)
        assert where.removeprefix("assumed: ").removeprefix("unverified: ")


def test_another_batch_and_another_data_set() -> None:
    mae, vit = recipe("mae-l16-imagenet"), recipe("vit-b16-imagenet")
    assert mae.rate(256) == pytest.approx(1.5e-4)
    assert mae.rate(4096) == pytest.approx(2.4e-3)
    assert vit.rate(256) == vit.learning_rate, "the paper says nothing of it"
    assert vit.steps() == 93_750
    assert vit.steps(batch_size=1024) == 4 * 93_750
    assert vit.steps(images=128_000) == 9_375
    assert vit.warmup_steps(images=128_000) == 10_000, "the paper counts it in steps"
    assert mae.warmup_steps() == 12_500


def test_as_json_values() -> None:
    document = recipe("vit-l16-imagenet21k").to_dict()
    assert document["command"] == "vitrail pretrain DATA --recipe vit-l16-imagenet21k"
    assert document["reported_is"] == "unverified"
    assert document["reported"] == [{"accuracy": 85.3, "data": "ImageNet", "spread": 0.02, "how": "fine-tuned"}]
    assert document["source"] == "arXiv 2010.11929, table 3"
    assert document["steps"] == 307_617
    assert "label_smoothing" in document["assumed"]
