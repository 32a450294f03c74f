"""Configurations: names, resolutions, and what is read back from a file somebody may have edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vitrail.config import (
    ABSOLUTE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RELATIVE,
    SIZES,
    EncoderConfig,
    HeadConfig,
    Interpolation,
    MLPKind,
    ModelCard,
    Place,
    PositionConfig,
    PositionKind,
    Preprocessing,
    Resampling,
    ResNetConfig,
    Size,
    ViTConfig,
    check_resolution,
    parse_size,
    size_text,
    suggestion,
    variant,
)
from vitrail.errors import UserError
from vitrail.record import from_dict, to_dict
from vitrail.size import LARGEST


def refusal(call: Callable[[], object]) -> str:
    """The sentence that ``call`` is refused with, or a full stop where it is not."""
    try:
        call()
    except UserError as error:
        return str(error)
    return "."


TOY = ViTConfig(EncoderConfig(layers=2, width=12, heads=3, mlp_width=24), patch=(4, 4), image_size=(8, 8))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ViT-Ti/16", (12, 192, 3, 768, "gelu", None, (16, 16), (224, 224))),
        ("ViT-B/16", (12, 768, 12, 3072, "gelu", None, (16, 16), (224, 224))),
        ("ViT-L/32", (24, 1024, 16, 4096, "gelu", None, (32, 32), (224, 224))),
        ("ViT-H/14", (32, 1280, 16, 5120, "gelu", None, (14, 14), (224, 224))),
        ("DINOv2-S/14", (12, 384, 6, 1536, "gelu", 1e-5, (14, 14), (518, 518))),
        ("DINOv2-g/14", (40, 1536, 24, 4096, "swiglu", 1e-5, (14, 14), (518, 518))),
    ],
)
def test_a_variant_has_the_papers_shape(name: str, shape: tuple[Any, ...]) -> None:
    config = variant(name)
    e = config.encoder
    found = (e.layers, e.width, e.heads, e.mlp_width, e.mlp, e.layer_scale, config.patch, config.image_size)
    assert found == shape


def test_a_variant_takes_another_size_and_a_head() -> None:
    config = variant("ViT-B/16", image_size=(384, 192), classes=10)
    assert (config.grid, config.sequence, config.head.classes) == ((24, 12), 289, 10)
    assert config.at((224, 224)) == variant("ViT-B/16", classes=10)
    wide = config.with_head(HeadConfig(parts=("class", "mean"), layers=4))
    assert wide.feature_width == 4 * 2 * 768


@pytest.mark.parametrize("size", [size for size in SIZES if size != "g"])
def test_every_size_has_heads_of_64_but_huge(size: str) -> None:
    encoder = variant(f"ViT-{size}/16").encoder
    assert encoder.width // encoder.heads == (80 if size == "H" else 64)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit-b/16", "ViT-B/16"),
        ("ViT-B16", "ViT-B/16"),
        ("VIT_L/16", "ViT-L/16"),
        ("DINOv2-g14", "DINOv2-g/14"),
        ("ViT-B/0", "ViT-B/8"),
        ("dino-s/14", "DINOv2-S/14"),
    ],
)
def test_the_nearest_variant_is_suggested(name: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        variant(name)
    assert str(caught.value) == f"There is no variant {name!r}; the nearest is {nearest}."


def test_a_name_far_from_all_lists_them() -> None:
    with pytest.raises(UserError, match=r"^There is no variant '\?'; known are ViT-Ti/8, .*DINOv2-g/14 and 28 more\.$"):
        variant("?")
    assert suggestion("x", ["left", "right"]) == "; known are left, right"


def test_the_papers_giant_is_not_dinov2s() -> None:
    with pytest.raises(UserError, match="There is no variant 'ViT-g/14'"):
        variant("ViT-g/14")


@given(st.text(max_size=12) | st.from_regex(r"\A(ViT|DINOv2)-[A-Za-z]{1,2}/\d{1,3}\Z"))
def test_any_name_is_a_model_or_a_sentence(name: str) -> None:
    assert refusal(lambda: variant(name)).endswith(".")


pixels = st.integers(1, 2000)
cells = st.integers(1, 64)


@given(image=st.tuples(pixels, pixels), patch=st.tuples(cells, cells))
def test_the_sizes_named_are_valid_and_nothing_between_them_is(image: Size, patch: Size) -> None:
    if image[0] % patch[0] == image[1] % patch[1] == 0:
        check_resolution(image, patch)
        return
    with pytest.raises(UserError, match="is not a whole number of patches") as caught:
        check_resolution(image, patch)
    named = [parse_size(text) for text in str(caught.value).rpartition("are ")[2].rstrip(".").split(" and ")]
    for size in named:
        check_resolution(size, patch)
    for axis in (0, 1):
        low, high = named[0][axis], named[-1][axis]
        assert low <= image[axis] <= high or low == high == patch[axis] > image[axis]
        assert high - low in (0, patch[axis])


@pytest.mark.parametrize(
    ("image", "patch", "tail"),
    [
        ((225, 225), (14, 14), "225x225 is not a whole number of patches of 14x14: the nearest sizes are 224 and 238."),
        ((224, 170), (14, 14), "the nearest sizes are 224x168 and 224x182."),
        ((5, 5), (14, 14), "the nearest sizes are 14."),
        ((0, 14), (14, 14), "the nearest sizes are 14x14."),
        ((-3, 15), (14, 14), "the nearest sizes are 14x14 and 14x28."),
    ],
)
def test_the_nearest_sizes_are_named(image: Size, patch: Size, tail: str) -> None:
    with pytest.raises(UserError) as caught:
        check_resolution(image, patch)
    assert str(caught.value).endswith(tail)


@given(st.tuples(pixels, pixels))
def test_a_size_reads_back_from_its_text(size: Size) -> None:
    assert parse_size(size_text(size)) == size == parse_size(list(size))
    assert parse_size(str(size[0])) == parse_size(size[0]) == (size[0], size[0])


@pytest.mark.parametrize("text", ["", "x", "224x", "224x168x3", "-224", "0", "22.4", "224 168", 0, -1, [224], [0, 1]])
def test_what_is_no_size_says_how_to_write_one(text: Any) -> None:
    with pytest.raises(UserError, match="is not a resolution: write 224, or 224x168"):
        parse_size(text)


finite = st.floats(-1e6, 1e6)
rate = st.floats(0.0, 1.0, exclude_max=True)


@st.composite
def positions(draw: st.DrawFn) -> PositionConfig:
    """Any valid position scheme."""
    kind = draw(st.sampled_from(get_args(PositionKind)))
    axes = RELATIVE.get(kind)
    offsets = st.tuples(*[st.integers(0, 100)] * (axes or 0))
    return PositionConfig(
        kind=kind,
        resampling=draw(st.sampled_from(get_args(Resampling))),
        place=draw(st.sampled_from(get_args(Place))) if kind in ABSOLUTE else "stem",
        special=draw(st.booleans()),
        clip=draw(st.none() | offsets) if axes else None,
        rope_base=draw(st.floats(1e-3, 1e6)),
    )


stems = st.builds(
    ResNetConfig,
    layers=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    width=st.sampled_from([32, 64, 96]),
    standard=st.sampled_from(["deviation", "variance"]),
    standard_eps=st.floats(1e-12, 1e-3),
    norm_eps=st.floats(1e-12, 1e-3),
)


@st.composite
def vit_configs(draw: st.DrawFn) -> ViTConfig:
    """Any valid architecture."""
    heads, layers = draw(st.integers(1, 16)), draw(st.integers(1, 48))
    patch = draw(st.tuples(cells, cells))
    tokens = draw(st.sampled_from([(), ("class",), ("class", "distillation")]))
    parts = draw(st.lists(st.sampled_from(["mean", "map", *tokens]), min_size=1, unique=True))
    position, stem = draw(positions()), draw(st.none() | stems)
    cell = 1 if stem is None else stem.stride
    classes = draw(st.integers(0, 21843))
    sides = [side * cell for side in patch]
    assume(max(sides) <= LARGEST)
    return ViTConfig(
        encoder=EncoderConfig(
            layers=layers,
            width=heads * 4 * draw(st.integers(1, 32)),
            heads=heads,
            mlp_width=draw(st.integers(1, 8192)),
            mlp=draw(st.sampled_from(get_args(MLPKind))),
            norm_eps=draw(st.floats(1e-12, 1e-3)),
            qkv_bias=draw(st.booleans()),
            layer_scale=draw(st.none() | finite),
            dropout=draw(rate),
            drop_path=draw(rate),
        ),
        patch=patch,
        image_size=tuple(side * draw(st.integers(1, min(20, LARGEST // side))) for side in sides),
        channels=draw(st.integers(1, 13)),
        tokens=(*tokens, *["register"] * draw(st.integers(0, 8))),
        position=position,
        head=HeadConfig(
            parts=tuple(parts),
            layers=1 if "map" in parts else draw(st.integers(1, layers)),
            norm=draw(st.sampled_from(["tokens", "pooled"])),
            classes=classes,
            prelogits=draw(st.none() | st.integers(1, 4096)) if classes else None,
        ),
        stem=stem,
    )


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    """Any valid preprocessing."""
    channels = draw(st.integers(1, 13))
    return Preprocessing(
        size=draw(st.tuples(pixels, pixels)),
        fit=draw(st.sampled_from(["crop", "squash"])),
        crop_fraction=draw(st.floats(0.0, 1.0, exclude_min=True)),
        interpolation=draw(st.sampled_from(get_args(Interpolation))),
        mean=tuple(draw(finite) for _ in range(channels)),
        std=tuple(draw(st.floats(1e-6, 1e6)) for _ in range(channels)),
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def model_cards(draw: st.DrawFn) -> ModelCard:
    """Any valid card, with class names in any script."""
    names = tuple(draw(st.lists(st.text(), max_size=5)))
    config = draw(vit_configs())
    if names:
        config = config.with_head(replace(config.head, classes=len(names)))
    preprocessing = draw(preprocessings()).at(config.image_size)
    return ModelCard(config, preprocessing, names, draw(st.dictionaries(st.text(), json_values, max_size=3)))


@given(vit_configs() | preprocessings() | model_cards())
def test_what_is_written_as_json_is_read_back_equal(config: Any) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_an_integer_is_read_as_the_float_it_stands_for() -> None:
    crop = from_dict(Preprocessing, {"crop_fraction": 1, "mean": [0], "std": [1]})
    assert crop == Preprocessing(crop_fraction=1.0, mean=(0.0,), std=(1.0,))
    assert type(crop.crop_fraction) is type(crop.mean[0]) is float


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"pooling": 1}, "config.json has a field 'pooling' that this version of Vitrail does not know."),
        ({1: 1, "pooling": 1}, "config.json has a field 1 that this version of Vitrail does not know."),
        ({"encoder": None}, "config.json, field 'encoder' should hold a table for EncoderConfig, not NoneType."),
        ({"channels": "3"}, "config.json, field 'channels' should be int, not '3'."),
        ({"channels": True}, "config.json, field 'channels' should be int, not True."),
        ({"channels": 3.0}, "config.json, field 'channels' should be int, not 3.0."),
        ({"patch": 4}, "config.json, field 'patch' should be a list, not 4."),
        ({"patch": [4, 4, 4]}, "config.json, field 'patch' should have 2 entries, not 3."),
        ({"patch": [4, "4"]}, "config.json, field 'patch' should be int, not '4'."),
        (
            {"tokens": ["cls"]},
            "config.json, field 'tokens' should be one of 'class', 'distillation', 'register', not 'cls'.",
        ),
        ({"tokens": [[]]}, "config.json, field 'tokens' should be one of 'class', 'distillation', 'register', not []."),
        ({"patch": [0, 4]}, "patch and channels must be at least 1, not 0x4 and 3."),
        ({"patch": [-4, 4]}, "patch and channels must be at least 1, not -4x4 and 3."),
        ({"channels": 0}, "patch and channels must be at least 1, not 4x4 and 0."),
        ({"tokens": [], "head": {}}, "The head pools the class token, but the model has only []."),
        ({"head": {"layers": 3}}, "The head pools 3 layers, but there are 2."),
        ({"head": {"norm": 1}}, "config.json, field 'head', field 'norm' should be one of 'tokens', 'pooled', not 1."),
    ],
    ids=str,
)
def test_a_fault_in_a_file_is_one_sentence(change: dict[Any, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(ViTConfig, {**to_dict(TOY), **change}, "config.json")
    assert str(caught.value) == complaint


def test_a_missing_field_is_named() -> None:
    data = to_dict(TOY)
    del data["encoder"]["heads"]
    with pytest.raises(UserError, match=r"^config\.json, field 'encoder' lacks the field 'heads'\.$"):
        from_dict(ViTConfig, data, "config.json")


def test_a_file_that_holds_a_list_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^config\.json should hold a table for ViTConfig, not list\.$"):
        from_dict(ViTConfig, [], "config.json")  # type: ignore[arg-type]


@given(json_values, st.sampled_from([ViTConfig, Preprocessing, ModelCard]), st.data())
def test_any_json_in_any_field_is_read_or_refused_with_a_sentence(value: Any, cls: type, data: st.DataObject) -> None:
    card = ModelCard(TOY, Preprocessing(size=TOY.image_size))
    whole = to_dict({ViTConfig: card.architecture, Preprocessing: card.preprocessing, ModelCard: card}[cls])
    whole[data.draw(st.sampled_from(sorted(whole)))] = value
    assert refusal(lambda: from_dict(cls, whole)).endswith(".")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("heads", 5, "5 heads do not divide a width of 12: choose a number of heads that does."),
        ("heads", 0, "heads must be at least 1, not 0."),
        ("layers", -1, "layers must be at least 1, not -1."),
        ("dropout", 1.0, "dropout must lie in [0, 1), not 1.0."),
        ("drop_path", float("nan"), "drop_path must lie in [0, 1), not nan."),
    ],
)
def test_an_impossible_encoder_is_refused(field: str, value: float, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(TOY.encoder, **{field: value})
    assert str(caught.value) == complaint


@pytest.mark.parametrize("change", [{"parts": ()}, {"layers": 0}, {"classes": -1}], ids=str)
def test_an_impossible_head_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="A head needs at least one part"):
        HeadConfig(**change)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"crop_fraction": 0.0}, "crop_fraction must lie in"),
        ({"crop_fraction": float("nan")}, "crop_fraction must lie in"),
        ({"std": (0.5, 0.5)}, "one number a channel"),
        ({"std": (0.5, 0.5, 0.0)}, "std above 0"),
    ],
    ids=str,
)
def test_impossible_preprocessing_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Preprocessing(**change)


def test_a_card_whose_parts_disagree_is_refused() -> None:
    two = TOY.with_head(HeadConfig(classes=2))
    fitting = Preprocessing(size=(8, 8))
    assert ModelCard(two, fitting, ("cat", "dog")).class_names == ("cat", "dog")
    with pytest.raises(UserError, match=r"^1 class names for 2 logits: they must match\.$"):
        ModelCard(two, fitting, ("cat",))
    with pytest.raises(UserError, match=r"images of 224x224, the model takes 8x8: they must match\.$"):
        ModelCard(two, Preprocessing(), ("cat", "dog"))


def test_swapped_mean_and_deviation() -> None:
    with pytest.raises(UserError, match="ImageNet's mean and std swapped"):
        Preprocessing(mean=IMAGENET_STD, std=IMAGENET_MEAN)
