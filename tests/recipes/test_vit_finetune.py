"""Fine-tuning against tables 2 and 4 of the ViT paper, written down a second time here."""

from __future__ import annotations

import pytest

from vitrail.recipes.index import recipe, recipes

# Table 2: ImageNet, ReaL, CIFAR-10, CIFAR-100, Pets, Flowers, VTAB.
TABLE_2 = {
    "vit-h14-jft300m": "88.55 0.04  90.72 0.05  99.50 0.06  94.55 0.04  97.56 0.03  99.68 0.02  77.63 0.23",
    "vit-l16-jft300m": "87.76 0.03  90.54 0.03  99.42 0.03  93.90 0.05  97.32 0.11  99.74 0.00  76.28 0.46",
    "vit-l16-imagenet21k": "85.30 0.02  88.62 0.05  99.15 0.03  93.25 0.05  94.67 0.15  99.61 0.02  72.72 0.21",
}
# Table 4: steps, learning rates from, to.
TABLE_4 = {
    "imagenet": (20_000, (0.003, 0.06)),
    "cifar10": (10_000, (0.001, 0.03)),
    "cifar100": (10_000, (0.001, 0.03)),
    "pets": (500, (0.001, 0.03)),
    "flowers": (500, (0.001, 0.03)),
    "vtab": (2_500, None),
}


@pytest.mark.parametrize("target", TABLE_4)
@pytest.mark.parametrize("start", TABLE_2)
def test_table_4(start: str, target: str) -> None:
    r = recipe(f"{start}-to-{target}")
    steps, searched = TABLE_4[target]
    assert (r.start, r.makes) == (start, "finetune")
    assert (r.steps(), r.searched) == (steps, searched)
    assert (r.batch_size, r.optimizer, r.momentum, r.schedule) == (512, "sgd", 0.9, "cosine")
    assert (r.weight_decay, r.clip, r.learning_rate) == (0.0, 1.0, 0.01)
    assert ("learning_rate" in r.assumed) == (target != "vtab"), "a range says nothing of what was best in it"
    assert r.architecture.head.prelogits is None, "one linear layer"
    settled = {"batch_size", "optimizer", "momentum", "schedule", "weight_decay", "clip", "duration", "reported"}
    assert settled.isdisjoint((*r.assumed, *r.unverified))


@pytest.mark.parametrize("start", TABLE_2)
def test_table_2(start: str) -> None:
    results = [result for target in TABLE_4 for result in recipe(f"{start}-to-{target}").reported]
    figures = [float(figure) for figure in TABLE_2[start].split()]
    assert [(result.accuracy, result.spread) for result in results] == list(
        zip(figures[::2], figures[1::2], strict=True)
    )
    assert [result.data for result in results] == [
        *("ImageNet", "ImageNet ReaL", "CIFAR-10", "CIFAR-100", "Pets", "Flowers-102", "VTAB"),
    ]


def test_resolutions() -> None:
    """384; 512 and 518 on ImageNet; and 378 where patches of 14 do not divide 384."""
    for r in recipes():
        if r.makes != "finetune" or r.paper != "2010.11929":
            continue
        h14, imagenet = r.variant == "ViT-H/14", r.name.endswith("-to-imagenet")
        side = {(True, True): 518, (True, False): 378, (False, True): 512, (False, False): 384}[h14, imagenet]
        assert r.architecture.image_size == (side, side)
        assert ("resolution" in r.assumed) == (side == 378)


def test_averaging_is_unverified() -> None:
    for start in TABLE_2:
        r = recipe(f"{start}-to-imagenet")
        assert r.average == 0.9999
        assert "average" in r.unverified
        assert recipe(f"{start}-to-pets").average is None
