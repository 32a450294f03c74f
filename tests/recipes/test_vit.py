"""Pretraining against table 3 of the ViT paper, written down a second time here."""

from __future__ import annotations

import pytest

from vitrail.recipes.index import recipe

# Table 3: epochs, highest rate, decay of the rate, weight decay, dropout; section 4.1: images.
TABLE_3 = {
    "vit-b16-imagenet": (300, 3e-3, "cosine", 0.3, 0.1, 1.28e6),
    "vit-l16-imagenet": (300, 3e-3, "cosine", 0.3, 0.1, 1.28e6),
    "vit-b16-imagenet21k": (90, 1e-3, "linear", 0.03, 0.1, 14e6),
    "vit-l16-imagenet21k": (90, 1e-3, "linear", 0.03, 0.1, 14e6),
    "vit-l16-imagenet21k-30ep": (30, 1e-3, "linear", 0.03, 0.1, 14e6),
    "vit-b16-jft300m": (7, 8e-4, "linear", 0.1, 0.0, 303e6),
    "vit-l16-jft300m": (14, 4e-4, "linear", 0.1, 0.0, 303e6),
    "vit-l16-jft300m-7ep": (7, 4e-4, "linear", 0.1, 0.0, 303e6),
    "vit-h14-jft300m": (14, 3e-4, "linear", 0.1, 0.0, 303e6),
}
# Table 1: layers, width, MLP width, heads.
TABLE_1 = {"b": (12, 768, 3072, 12), "l": (24, 1024, 4096, 16), "h": (32, 1280, 5120, 16)}
STATED = "variant position head dropout resolution objective data batch_size duration betas learning_rate schedule"


@pytest.mark.parametrize("name", TABLE_3)
def test_table_3(name: str) -> None:
    r = recipe(name)
    encoder, head = r.architecture.encoder, r.architecture.head
    assert (r.duration.amount, r.learning_rate, r.schedule, r.weight_decay, encoder.dropout, r.data.images) == TABLE_3[
        name
    ]
    assert r.duration.unit == "epochs"
    assert (encoder.layers, encoder.width, encoder.mlp_width, encoder.heads) == TABLE_1[name[4]]
    assert (r.paper, r.where) == ("2010.11929", "table 3")
    assert (r.optimizer, r.betas, r.batch_size, r.warmup_steps()) == ("adamw", (0.9, 0.999), 4096, 10_000)
    assert r.architecture.image_size == (224, 224)
    assert (head.parts, head.prelogits) == (("class",), encoder.width), "the hidden layer of pretraining"
    assert r.architecture.position.kind == "learned-1d"
    assert {*STATED.split(), "warmup", "weight_decay"}.isdisjoint((*r.assumed, *r.unverified))


def test_clipping_is_named_for_imagenet_alone() -> None:
    for name in TABLE_3:
        r = recipe(name)
        on_imagenet = name.endswith("-imagenet")
        assert r.clip == (1.0 if on_imagenet else None)
        assert ("clip" in r.assumed) != on_imagenet


# Table 2: accuracy after fine-tuning on ImageNet, and thousands of TPUv3-core-days.
TABLE_2 = {"vit-h14-jft300m": (88.55, 0.04, "2,500"), "vit-l16-jft300m": (87.76, 0.03, "680")}
TABLE_2["vit-l16-imagenet21k"] = (85.30, 0.02, "230")


@pytest.mark.parametrize("name", TABLE_3)
def test_what_is_reported(name: str) -> None:
    r = recipe(name)
    if name not in TABLE_2:
        assert r.reported == ()
        assert "hardware" in r.assumed
        return
    accuracy, spread, days = TABLE_2[name]
    (result,) = r.reported
    assert (result.accuracy, result.spread, result.data) == (accuracy, spread, "ImageNet")
    assert r.hardware == f"TPUv3, {days} core-days"
    ambiguous = name != "vit-h14-jft300m"  # the other two were trained for two lengths
    assert {"hardware", "reported"}.issubset(r.unverified) == ambiguous
    assert {"hardware", "reported"}.isdisjoint(r.assumed)


def test_masked_patch_prediction() -> None:
    r = recipe("vit-b16-jft300m-masked-patches")
    assert (r.where, r.objective.kind, r.variant) == ("appendix B.1.2", "masked-patches", "ViT-B/16")
    for figure in ("50 %", "80 % [mask]", "10 % another", "3 bits"):
        assert figure in r.objective.note
    (result,) = r.reported
    assert (result.accuracy, result.data) == (79.9, "ImageNet")
    assert {"objective", "reported", "variant"}.isdisjoint((*r.assumed, *r.unverified))
    assert {"data", "duration", "learning_rate", "schedule", "batch_size", "warmup"} <= set(r.unverified)
