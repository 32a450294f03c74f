"""What a model is, what it is fed, and the table of variants: frozen dataclasses, no torch.

Everything a state dict does not say (heads, epsilon, GELU, pooling, position grid and its
resampling, input size, mean and standard deviation, interpolation, crop, class names) is a field
here, so that it travels with the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vitrail.efficientnet import SCALED, is_efficientnet
from vitrail.efficientnet import EfficientNetConfig as EfficientNetConfig
from vitrail.efficientnet import efficientnet as efficientnet
from vitrail.errors import UserError
from vitrail.errors import suggestion as suggestion
from vitrail.parts import ABSOLUTE as ABSOLUTE
from vitrail.parts import RELATIVE as RELATIVE
from vitrail.parts import EncoderConfig as EncoderConfig
from vitrail.parts import HeadConfig as HeadConfig
from vitrail.parts import MLPKind as MLPKind
from vitrail.parts import Part as Part
from vitrail.parts import Place as Place
from vitrail.parts import PositionConfig as PositionConfig
from vitrail.parts import PositionKind as PositionKind
from vitrail.parts import Resampling as Resampling
from vitrail.parts import ResNetConfig as ResNetConfig
from vitrail.parts import Token as Token
from vitrail.resnet import DEPTHS, is_resnet
from vitrail.resnet import BiTConfig as BiTConfig
from vitrail.resnet import resnet as resnet
from vitrail.size import Size as Size
from vitrail.size import check_resolution as check_resolution
from vitrail.size import parse_size as parse_size
from vitrail.size import size_text as size_text

Fit = Literal["crop", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer at one resolution."""

    encoder: EncoderConfig
    patch: Size = (16, 16)
    image_size: Size = (224, 224)
    channels: int = 3
    tokens: tuple[Token, ...] = ("class",)
    """Learned tokens before the patches, in order; registers (2309.16588) come last and have no position."""
    position: PositionConfig = field(default_factory=PositionConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    stem: ResNetConfig | None = None
    """A hybrid's ResNet, whose feature map is then cut into patches: ``patch`` counts its cells."""

    def __post_init__(self) -> None:
        if min(*self.patch, self.channels) < 1:
            raise UserError(f"patch and channels must be at least 1, not {size_text(self.patch)} and {self.channels}.")
        check_resolution(self.image_size, self.cell)
        if missing := [part for part in self.head.parts if part not in ("mean", "map", *self.tokens)]:
            raise UserError(f"The head pools the {missing[0]} token, but the model has only {list(self.tokens)}.")
        if self.head.layers > self.encoder.layers:
            raise UserError(f"The head pools {self.head.layers} layers, but there are {self.encoder.layers}.")
        if "register" in self.tokens[: len(self.tokens) - self.registers]:
            raise UserError(f"Register tokens stand after the others, not as in {list(self.tokens)}.")
        self._check_widths()

    def _check_widths(self) -> None:
        width, head = self.encoder.width, self.encoder.width // self.encoder.heads
        needed = {"sinusoidal-1d": (width, 2), "learned-2d": (width, 2), "sincos-2d": (width, 4), "rope-2d": (head, 4)}
        length, divisor = needed.get(self.position.kind, (0, 1))
        if length % divisor:
            what = "width" if length == width else "width of a head"
            raise UserError(
                f"Positions of kind {self.position.kind} need a {what} divisible by {divisor}, not {length}: "
                "choose another width, number of heads or kind."
            )

    @property
    def registers(self) -> int:
        """How many of the learned tokens are registers."""
        return self.tokens.count("register")

    @property
    def positioned(self) -> int:
        """How many of the learned tokens have positions: they are the first."""
        return len(self.tokens) - self.registers if self.position.special else 0

    @property
    def cell(self) -> Size:
        """Pixels of the image that a token stands for: the patch, as large as the stem's stride makes it."""
        stride = 1 if self.stem is None else self.stem.stride
        return (self.patch[0] * stride, self.patch[1] * stride)

    @property
    def grid(self) -> Size:
        """Patches down and across: (H/P, W/P)."""
        return (self.image_size[0] // self.cell[0], self.image_size[1] // self.cell[1])

    @property
    def sequence(self) -> int:
        """Number of tokens that enter the encoder: N patches and the learned ones before them."""
        return self.grid[0] * self.grid[1] + len(self.tokens)

    @property
    def summary(self) -> str:
        """``12 layers x 384, 6 heads``."""
        return f"{self.encoder.layers} layers x {self.encoder.width}, {self.encoder.heads} heads"

    @property
    def layers(self) -> int:
        """L, that ``VisionTransformer.depth`` counts."""
        return self.encoder.layers

    @property
    def width(self) -> int:
        """D, of what is pooled."""
        return self.encoder.width

    @property
    def feature_width(self) -> int:
        """Length of the vector of features."""
        return self.head.layers * len(self.head.parts) * self.width

    @property
    def classifier_width(self) -> int:
        """Length of the vector the classifier sees: the features, or what a pre-logits layer makes of them."""
        return self.head.prelogits or self.feature_width

    def at(self, image_size: Size) -> ViTConfig:
        """The same model at another resolution."""
        return replace(self, image_size=image_size)

    def with_head(self, head: HeadConfig) -> ViTConfig:
        """The same model with another head."""
        return replace(self, head=head)

    def noisy(self, dropout: float | None, drop_path: float | None) -> ViTConfig:
        """With other dropout and stochastic depth while training; None: as they are."""
        old = self.encoder
        new = replace(
            old,
            dropout=old.dropout if dropout is None else dropout,
            drop_path=old.drop_path if drop_path is None else drop_path,
        )
        return replace(self, encoder=new)


Architecture = ViTConfig | BiTConfig | EfficientNetConfig
"""What a model may be; ``kind`` tells one from another where it is written down."""


def transformer(config: Architecture, what: str) -> ViTConfig:
    """The same, if it is a Vision Transformer's.

    Raises:
        UserError: it is not, and ``what`` needs one.
    """
    if not isinstance(config, ViTConfig):
        raise UserError(f"{what} needs a Vision Transformer, and this is a CNN: choose another model, or another way.")
    return config


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded photo to the tensor a model was trained on."""

    size: Size = (224, 224)
    fit: Fit = "crop"
    """``crop`` keeps the aspect and covers ``size / crop_fraction``, ``squash`` resizes to it; the centre is cut."""
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_fraction <= 1.0:
            raise UserError(f"crop_fraction must lie in (0, 1], not {self.crop_fraction}.")
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise UserError(f"mean and std need one number a channel, std above 0: {self.mean}, {self.std}.")
        if (self.mean, self.std) == (IMAGENET_STD, IMAGENET_MEAN):
            raise UserError(
                "The preprocessing has ImageNet's mean and std swapped: exchange them in its configuration."
            )

    def at(self, size: Size) -> Preprocessing:
        """The same preprocessing at another resolution."""
        return replace(self, size=size)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelCard:
    """Everything about a model but its tensors: what ``config.json`` in a model folder holds."""

    architecture: Architecture
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights came from: source, dialect, revision or hash, what was done since."""
    temperature: float = 1.0
    """Logits are divided by it for probabilities (1706.04599, section 4.2); 1: as they are."""

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.architecture.head.classes:
            raise UserError(
                f"{len(self.class_names)} class names for {self.architecture.head.classes} logits: they must match."
            )
        if not self.temperature > 0:
            raise UserError(f"The temperature must be above 0, not {self.temperature}.")
        if self.preprocessing.size != self.architecture.image_size:
            raise UserError(
                f"The preprocessing makes images of {size_text(self.preprocessing.size)}, the model takes "
                f"{size_text(self.architecture.image_size)}: they must match."
            )


# Size: layers, width, MLP width, heads (ViT table 1; Ti and S from DeiT; g from DINOv2).
SIZES: dict[str, tuple[int, int, int, int]] = {
    "Ti": (12, 192, 768, 3),
    "S": (12, 384, 1536, 6),
    "B": (12, 768, 3072, 12),
    "L": (24, 1024, 4096, 16),
    "H": (32, 1280, 5120, 16),
    "g": (40, 1536, 4096, 24),
}

# Name and pixels to a token: units of each stage. Google's published hybrids.
STEMS: dict[tuple[str, int], tuple[int, ...]] = {
    ("R26", 32): (2, 2, 2, 2),
    ("R50", 16): (3, 4, 9),
    ("R50", 32): (3, 4, 6, 3),
}

_NAME = re.compile(r"(?:(?P<stem>R\d+)\+)?(?P<family>ViT|DINOv2)-(?P<size>[A-Za-z]+)/(?P<patch>\d+)")


def is_variant(name: str) -> bool:
    """Whether a name is written as one of a ViT, a ResNet or an EfficientNet, existing or not."""
    return _NAME.fullmatch(name) is not None or is_resnet(name) or is_efficientnet(name)


def architecture(name: str, image_size: Size | None = None, classes: int = 0) -> Architecture:
    """The configuration of a ViT (``variant``), a ``resnet`` or an ``efficientnet`` by its name.

    Args:
        image_size: None: what it is usually fed.

    Raises:
        UserError: no such model; the nearest name is suggested.
    """
    if is_resnet(name):
        return resnet(name, image_size or (224, 224), classes)
    if is_efficientnet(name):
        return efficientnet(name, image_size, classes)
    return variant(name, image_size, classes)


def variant(name: str, image_size: Size | None = None, classes: int = 0) -> ViTConfig:
    """The configuration that a name such as ``ViT-B/16`` or ``DINOv2-S/14`` stands for.

    ViT names are size/patch at 224 pixels (ViT section 4.1); DINOv2's have LayerScale, a grid of
    518 pixels and, for ``g``, SwiGLU. ``R50+ViT-B/16`` is a hybrid: a ResNet with a token for each cell
    of its feature map.

    Raises:
        UserError: no such variant; the nearest name is suggested.
    """
    match = _NAME.fullmatch(name)
    if (
        match is None
        or match["size"] not in SIZES
        or int(match["patch"]) == 0
        or (match["family"], match["size"]) == ("ViT", "g")  # the paper's own ViT-g (2106.04560) is another shape
        or (match["stem"] and (match["family"] != "ViT" or (match["stem"], int(match["patch"])) not in STEMS))
    ):
        known = [f"ViT-{size}/{patch}" for size in SIZES if size != "g" for patch in (8, 14, 16, 32)]
        known += [f"DINOv2-{size}/14" for size in ("S", "B", "L", "g")]
        known += [f"{stem}+ViT-{size}/{patch}" for size in SIZES if size != "g" for stem, patch in STEMS]
        known += [*(f"R{depth}" for depth in DEPTHS), *(f"EfficientNet-{scale}" for scale in SCALED)]
        raise UserError(f"There is no variant {name!r}{suggestion(name, known)}.")
    layers, width, mlp_width, heads = SIZES[match["size"]]
    dinov2 = match["family"] == "DINOv2"
    patch = int(match["patch"])
    native = (518, 518) if dinov2 else (224, 224)
    stem = ResNetConfig(STEMS[match["stem"], patch]) if match["stem"] else None
    return ViTConfig(
        encoder=EncoderConfig(
            layers=layers,
            width=width,
            heads=heads,
            mlp_width=mlp_width,
            mlp="swiglu" if match["size"] == "g" else "gelu",
            layer_scale=1e-5 if dinov2 else None,
        ),
        patch=(patch, patch) if stem is None else (1, 1),
        image_size=image_size or native,
        head=HeadConfig(classes=classes),
        stem=stem,
    )


def registered(count: int) -> tuple[Token, ...]:
    """``count`` register tokens, for ``ViTConfig.tokens``."""
    register: tuple[Token, ...] = ("register",)
    return register * count
