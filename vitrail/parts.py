"""The parts that architectures are put together from, and what adapts them: frozen dataclasses, no torch.

``config.py`` offers them too, beside the architectures themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vitrail.errors import UserError

MLPKind = Literal["gelu", "gelu-tanh", "swiglu"]
Token = Literal["class", "distillation", "register"]
Part = Literal["class", "distillation", "mean", "map"]
PositionKind = Literal[
    "none",
    "learned-1d",
    "sinusoidal-1d",
    "learned-2d",
    "sincos-2d",
    "relative-1d",
    "relative-2d",
    "rope-2d",
]
ABSOLUTE: tuple[PositionKind, ...] = ("learned-1d", "sinusoidal-1d", "learned-2d", "sincos-2d")
"""Kinds that are a vector for each token, added to it; the others do nothing, or act inside attention."""
RELATIVE: dict[PositionKind, int] = {"relative-1d": 1, "relative-2d": 2}
"""Kinds that know offsets, and in how many dimensions."""
Place = Literal["stem", "every-layer", "shared"]
Resampling = Literal[
    "bicubic-corner",  # the article's and torchvision's: corners land on corners
    "bilinear-corner",  # Google's
    "bicubic",  # transformers, MAE: half-pixel centres
    "bilinear",  # timm from .npz
    "bicubic-antialias",  # timm from a state dict
    "bicubic-offset",  # the original DINO and DINOv2: a scale factor with +0.1 on the size
    "zeros-raster",  # none: the vectors in raster order, cut, or zeros after them (what article 5.1 advises against)
    "zeros-corner",  # none: each vector stays in its row and column; cut, or zeros beyond
]

Role = Literal["q", "k", "v", "out", "fc1", "fc2"]
ROLES: tuple[Role, ...] = get_args(Role)
"""What a dense layer of a block does: queries, keys, values, the projection after attention, the MLP's two."""


@dataclass(frozen=True)
class EncoderConfig:
    """The stack of blocks (ViT section 3.1, table 1)."""

    layers: int
    width: int
    heads: int
    mlp_width: int
    mlp: MLPKind = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: float | None = None
    """Initial value of LayerScale's diagonal (CaiT, DINOv2); None: no LayerScale."""
    dropout: float = 0.0
    """After every dense layer but qkv, and after the position embedding (ViT appendix B.1)."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; it rises linearly from 0 at the first."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide a width of {self.width}: choose a number of heads that does."
            )
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")


@dataclass(frozen=True)
class PositionConfig:
    """How tokens know where they stand (ViT appendix D.4)."""

    kind: PositionKind = "learned-1d"
    resampling: Resampling = "bicubic-corner"
    """How this model's table is taken to another grid; libraries disagree, so it travels with it."""
    place: Place = "stem"
    """Where an absolute kind is added: once before the first block, before every block a table of its
    own, or before every block the same one (ViT table 8)."""
    special: bool = True
    """Whether class and distillation tokens have positions; register tokens never have."""
    clip: tuple[int, ...] | None = None
    """Offsets of a relative kind beyond which all share one vector: in raster order for ``relative-1d``,
    (rows, columns) for ``relative-2d``; None: none of those that occur in the grid is cut."""
    rope_base: float = 100.0
    """Of rotary frequencies; DINOv3's."""

    def __post_init__(self) -> None:
        if self.place != "stem" and self.kind not in ABSOLUTE:
            raise UserError(
                f"Positions of kind {self.kind} are not added to tokens, so there is no place {self.place!r} for them: "
                f"leave the place out, or choose one of {', '.join(ABSOLUTE)}."
            )
        if self.clip is not None and (len(self.clip) != RELATIVE.get(self.kind) or min(self.clip) < 0):
            raise UserError(
                f"A clip of {list(self.clip)} does not fit positions of kind {self.kind}: relative-1d takes one "
                "number, relative-2d rows and columns, all 0 or more, and other kinds none."
            )
        if not self.rope_base > 0:
            raise UserError(f"rope_base must be above 0, not {self.rope_base}.")


@dataclass(frozen=True)
class HeadConfig:
    """Tokens -> features -> logits.

    The features are, for each of the last ``layers`` blocks, the ``parts`` of its output, all
    concatenated: ``("class",)`` of one layer is ViT's y = LN(z_L^0) (equation 4), ``("class",
    "mean")`` of one is DINOv2's linear evaluation with average pooling. ``map`` is attention pooling
    over all tokens (2106.04560, section 3.2), learned with the model.
    """

    parts: tuple[Part, ...] = ("class",)
    layers: int = 1
    norm: Literal["tokens", "pooled"] = "tokens"
    """Whether the last LayerNorm comes before pooling (the paper) or after it (timm's ``fc_norm``)."""
    classes: int = 0
    """Number of logits; 0: no classifier, the model ends in its features."""
    prelogits: int | None = None
    """Width of a dense layer with tanh between features and classifier, which ViT has while pretraining
    (section 3.1); None: no such layer, as when fine-tuning."""

    def __post_init__(self) -> None:
        if not self.parts or self.layers < 1 or self.classes < 0:
            raise UserError(f"A head needs at least one part and one layer and no negative classes: {self}.")
        if "map" in self.parts and self.layers > 1:
            raise UserError(f"Attention pooling reads the last layer alone, not {self.layers}: pool 1 layer.")
        if self.prelogits is not None and (self.prelogits < 1 or not self.classes):
            raise UserError(
                f"A pre-logits layer of width {self.prelogits} before {self.classes} classes: it needs at least one of "
                "each; leave it out where there is no classifier."
            )


@dataclass(frozen=True)
class ResNetConfig:
    """The convolutional stem of a hybrid (ViT section 3.1 and appendix B.2): R50 is (3, 4, 9) at stride 16."""

    layers: tuple[int, ...]
    """Units of each stage; the first stage keeps the root's stride of 4, each further one doubles it."""
    width: int = 64
    """Channels of the root and of the first stage's inner convolutions."""
    standard: Literal["deviation", "variance"] = "deviation"
    """What ``standard_eps`` is added to before kernels are divided: Google's w / (std + 1e-5), or timm's
    w / sqrt(var + 1e-8)."""
    standard_eps: float = 1e-5
    norm_eps: float = 1e-6
    """Of GroupNorm: Google's 1e-6, timm's 1e-5."""

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 1 or self.width < 32 or self.width % 32:
            raise UserError(
                f"A ResNet needs units in each of its stages and a width that is a multiple of 32 (its GroupNorm has "
                f"32 groups), not {list(self.layers)} and {self.width}."
            )

    @property
    def stride(self) -> int:
        """Pixels of the image for one cell of the feature map, each way."""
        return 4 << (len(self.layers) - 1)

    @property
    def outputs(self) -> int:
        """Channels of the feature map."""
        return 4 * self.width << (len(self.layers) - 1)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (2106.09685, section 4.1): W x becomes W x + scale B A x, of which A and B alone learn."""

    rank: int
    """r: rows of A and columns of B."""
    alpha: float
    """The scale is alpha / r."""
    roles: tuple[Role, ...]
    """Which matrices are adapted; the paper's choice is queries and values (section 7.1)."""
    dropout: float = 0.0
    """Of what A sees, as in the paper's code."""
    layers: tuple[int, ...] | None = None
    """In which layers, counted from 0; None: in all."""
    stabilised: bool = False
    """The scale is alpha / sqrt(r) instead (rsLoRA, 2312.03732)."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise UserError(
                f"LoRA needs a rank of at least 1 and an alpha above 0, not {self.rank} and {self.alpha}: "
                "8 is usual for either."
            )
        if unknown := [role for role in self.roles if role not in ROLES]:
            raise UserError(f"LoRA knows no role {unknown[0]!r}: choose among {', '.join(ROLES)}.")
        if not self.roles or len(set(self.roles)) < len(self.roles):
            raise UserError(
                f"LoRA needs roles to adapt, each once, not {list(self.roles)}: q and v are the usual ones."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout must lie in [0, 1), not {self.dropout}.")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise UserError(f"LoRA needs layers to adapt, each once, not {list(self.layers)}: leave them out for all.")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)
