"""MAE and MoCo v3: what their papers say here, and that the rest is marked."""

from __future__ import annotations

import pytest

from vitrail.recipes.index import recipe


@pytest.mark.parametrize("name", ["mae-b16-imagenet", "mae-l16-imagenet"])
def test_mae(name: str) -> None:
    r = recipe(name)
    figures = {"hidden": 0.75, "layers": 8, "width": 512, "normalised": True}
    assert figures.items() <= r.objective.arguments.items()
    doubtful = {*r.assumed, *r.unverified}
    assert {f"objective.{figure}" for figure in figures}.isdisjoint(doubtful)
    assert set(r.settings()) - doubtful == {
        *(f"objective.{figure}" for figure in figures),
        *("variant", "objective", "data"),
    }, "nothing else is known of the paper"
    assert r.data.images == 1_280_000


@pytest.mark.parametrize(("name", "heads"), [("moco-s16-imagenet", 12), ("moco-b16-imagenet", 12)])
def test_moco(name: str, heads: int) -> None:
    r = recipe(name)
    assert r.architecture.encoder.heads == heads
    assert r.objective.arguments["temperature"] == 0.2
    assert r.objective.arguments["freeze_patches"] is True
    doubtful = {*r.assumed, *r.unverified}
    assert set(r.settings()) - doubtful == {
        *("variant", "objective", "objective.temperature", "objective.freeze_patches", "data")
    }, "nothing else is known of the paper"


@pytest.mark.parametrize("name", ["small-cifar10", "small-cifar10-mae"])
def test_ours_claim_no_paper_and_no_result(name: str) -> None:
    r = recipe(name)
    assert r.paper is None
    assert r.reported == ()
    assert set(r.assumed) == set(r.settings())
    encoder = r.architecture.encoder
    assert (encoder.layers, encoder.width, r.architecture.patch, r.architecture.sequence) == (6, 128, (4, 4), 65)
