"""Checkpoints of the papers' own repositories, read only: DINO, DINOv2, MAE and MoCo v3 (``.pth`` files).

All use the names of timm's early Vision Transformer, and none says how many heads it has, so what
cannot be told from a wrapper or a decoder has to be named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import Tensor

from vitrail.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZES,
    EncoderConfig,
    HeadConfig,
    PositionConfig,
    Preprocessing,
    Resampling,
    ViTConfig,
    registered,
)
from vitrail.errors import UserError
from vitrail.weights import timm
from vitrail.weights.dialect import Checkpoint, Dialect, Found


@dataclass(frozen=True)
class Preset:
    """What a state dict does not say."""

    size: str
    patch: int
    resampling: Resampling = "bicubic"
    side: int = 224
    """Pixels of the square images its position grid is for."""
    heads: int | None = None
    """Where it is not the size's usual number."""
    registers: int = 0
    layer_scale: float | None = None


class Original(Dialect):
    """One paper's repository: the models it published, by name, and what its checkpoints wrap them in."""

    def __init__(self, name: str, presets: dict[str, Preset], wrappers: tuple[str, ...], mark: str = "") -> None:
        self.name = name
        self.presets = presets
        self.wrappers = wrappers
        """What stands before the names, for the encoder to keep; of several the first that is there."""
        self.mark = mark
        """Regular expression of a tensor that nobody else's checkpoints have."""

    def claims(self, found: Found) -> bool:
        """By the architecture that was named, or by a tensor that only they have."""
        if found.settings is not None:
            return False
        if found.architecture is not None:
            return found.architecture in self.presets
        return bool(self.mark) and any(re.match(self.mark, name) for name in found.tensors)

    def read(self, found: Found) -> Checkpoint:
        """See ``Dialect.read``."""
        tensors = _unwrapped(found, self.wrappers)
        name = found.architecture or self._by_width(found, tensors)
        preset = self.presets[name]
        layers, width, mlp_width, heads = SIZES[preset.size]
        classifier = tensors.get("head.weight")
        pooled = "fc_norm.weight" in tensors  # MAE's fine-tuned models pool the patches' mean and normalise that
        architecture = ViTConfig(
            encoder=EncoderConfig(
                layers=layers,
                width=width,
                heads=preset.heads or heads,
                mlp_width=mlp_width,
                mlp="swiglu" if preset.size == "g" else "gelu",
                norm_eps=1e-6,
                layer_scale=preset.layer_scale,
            ),
            patch=(preset.patch, preset.patch),
            image_size=(preset.side, preset.side),
            tokens=("class", *registered(preset.registers)),
            position=PositionConfig(resampling=preset.resampling),
            head=HeadConfig(
                parts=("mean",) if pooled else ("class",),
                norm="pooled" if pooled else "tokens",
                classes=0 if classifier is None else len(classifier),
            ),
        )
        return Checkpoint(
            architecture=architecture,
            preprocessing=Preprocessing((224, 224), "crop", 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
            class_names=(),
            provenance={**found.provenance, "dialect": self.name, "architecture": name},
            tensors=tensors,
            rules=timm.rules(architecture),
            ignored=(r"mask_token", r"decoder_.*", r"head\..*", r"norm\..*" if pooled else r"fc_norm\..*"),
        )

    def _by_width(self, found: Found, tensors: dict[str, Tensor]) -> str:
        width = tensors["cls_token"].shape[-1] if "cls_token" in tensors else 0
        for name, preset in self.presets.items():
            if SIZES[preset.size][1] == width:
                return name
        raise UserError(f"{found.name} looks like one of {self.name}, but none of its models is {width} wide.")


def _unwrapped(found: Found, wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    """The encoder's tensors in timm's names; those of other wrappers (a momentum encoder, a predictor) are left out."""
    for wrapper in wrappers:
        inside = {name.removeprefix(wrapper): part for name, part in found.tensors.items() if name.startswith(wrapper)}
        if "cls_token" in inside:
            break
    else:
        inside = dict(found.tensors)
    names = {"register_tokens": "reg_token"}
    return {
        names.get(name, re.sub(r"mlp\.w(12|3)\.", lambda m: f"mlp.fc{1 if m[1] == '12' else 2}.", name)): part
        for name, part in inside.items()
    }


_DINOV2 = Preset("S", 14, "bicubic-offset", 518, layer_scale=1e-5)
ORIGINALS: tuple[Dialect, ...] = (
    Original(
        "moco-v3",
        {"moco_v3_vit_small": Preset("S", 16, heads=12), "moco_v3_vit_base": Preset("B", 16)},  # 2104.02057, section 5
        ("module.base_encoder.", "module."),
        mark=r"module\.base_encoder\.cls_token",
    ),
    Original(
        "mae",
        {
            "mae_vit_base_patch16": Preset("B", 16),
            "mae_vit_large_patch16": Preset("L", 16),
            "mae_vit_huge_patch14": Preset("H", 14),
        },
        (),
        mark=r"decoder_pos_embed",
    ),
    Original(
        "dino",
        {f"dino_vit{s.lower()}{p}": Preset(s, p, "bicubic-offset") for s in ("S", "B") for p in (16, 8)},
        ("module.backbone.", "backbone.", "module."),
    ),
    Original(
        "dinov2",
        {f"dinov2_vit{s.lower()}14": replace(_DINOV2, size=s) for s in ("S", "B", "L", "g")}
        # With registers, the table is resampled to an exact size and antialiased.
        | {
            f"dinov2_vit{s.lower()}14_reg": replace(_DINOV2, size=s, registers=4, resampling="bicubic-antialias")
            for s in ("S", "B", "L", "g")
        },
        ("teacher.backbone.", "backbone."),
    ),
)
