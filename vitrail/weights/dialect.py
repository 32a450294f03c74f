"""A dialect: another library's names for our tensors, as one declarative two-way map."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.config import Preprocessing, ViTConfig
from vitrail.errors import UserError
from vitrail.weights.report import Fate


@dataclass(frozen=True)
class Rule:
    """Our tensors and theirs that hold the same numbers in the same order.

    Read as one flat sequence, ``ours`` one after another equal ``theirs`` one after another; this
    covers renaming, adding axes of length 1, and stacking or splitting along the first axis (q, k, v
    against qkv; a position table with its class row against the two apart). Where the numbers
    themselves differ, ``read`` maps their tensors to one of ours.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[[Sequence[Tensor]], Tensor] | None = None

    def of_layer(self, layer: int) -> Rule:
        """The rule with ``{l}`` filled in."""
        ours = tuple(name.replace("{l}", str(layer)) for name in self.ours)
        return Rule(ours, tuple(name.replace("{l}", str(layer)) for name in self.theirs), self.read)


def same(ours: str, theirs: str, kinds: Sequence[str] = ("weight", "bias")) -> list[Rule]:
    """Rules for the weight and bias of one layer that is called differently."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for kind in kinds]


def averaged_heads(first: str, second: str) -> list[Rule]:
    """DeiT's two classifiers, averaged when predicting (2012.12877, section 3): one on both tokens' features."""

    def weight(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=-1) / 2

    def bias(parts: Sequence[Tensor]) -> Tensor:
        return (parts[0] + parts[1]) / 2

    return [
        Rule(("classifier.weight",), (f"{first}.weight", f"{second}.weight"), weight),
        Rule(("classifier.bias",), (f"{first}.bias", f"{second}.bias"), bias),
    ]


@dataclass(frozen=True)
class Checkpoint:
    """Somebody's checkpoint, understood: what its words mean in ours, their tensors, and how names map."""

    architecture: ViTConfig
    """At the resolution of the checkpoint's own position grid."""
    preprocessing: Preprocessing
    """At the resolution the source feeds it by default, which may be another one."""
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    """Regular expressions of their tensors that a classifier has no use for; all others must be known."""


def per_layer(rules: Sequence[Rule], config: ViTConfig) -> list[Rule]:
    """Rules with ``{l}`` repeated for every layer, the others as they are."""
    result: list[Rule] = []
    for rule in rules:
        repeated = any("{l}" in name for name in rule.ours)
        result += [rule.of_layer(layer) for layer in range(config.encoder.layers)] if repeated else [rule]
    return result


def translate(
    checkpoint: Checkpoint, shapes: Mapping[str, torch.Size], where: str
) -> tuple[dict[str, Tensor], list[Fate]]:
    """Their tensors under our names and in our shapes, and the fate of each.

    Args:
        shapes: our model's tensors; each must be found.
        where: the source, for messages.

    Raises:
        UserError: a tensor is missing, of a shape that does not fit, or not known to the dialect.
    """
    theirs = dict(checkpoint.tensors)
    ours: dict[str, Tensor] = {}
    fates: list[Fate] = []
    for rule in per_layer(checkpoint.rules, checkpoint.architecture):
        if missing := [name for name in rule.theirs if name not in checkpoint.tensors]:
            raise UserError(
                f"{where} lacks the tensor {missing[0]}: it is incomplete, or not the architecture it says it is."
            )
        parts = [checkpoint.tensors[name] for name in rule.theirs]
        for name in rule.theirs:
            theirs.pop(name, None)
        source = rule.theirs[0] if len(rule.theirs) == 1 else ", ".join(rule.theirs)
        needed = [shapes[name] for name in rule.ours]
        flat = _one_after_another(rule, parts, needed)
        if flat is None:
            expected = ", ".join(f"{name} {tuple(shapes[name])}" for name in rule.ours)
            found = ", ".join(f"{name} {tuple(checkpoint.tensors[name].shape)}" for name in rule.theirs)
            raise UserError(
                f"{where} does not fit the architecture it says it is: {expected} needed, {found} found; "
                "check its configuration (heads, widths, image size)."
            )
        pieces = torch.split(flat, [shape.numel() for shape in needed])
        for name, piece in zip(rule.ours, pieces, strict=True):
            ours[name] = piece.reshape(shapes[name]).clone()
            fates.append(Fate(name, "loaded", f"from {source}"))
    for name in theirs:
        if not any(re.fullmatch(pattern, name) for pattern in checkpoint.ignored):
            raise UserError(
                f"{where} holds a tensor {name} that this architecture has no place for: it is another kind of model."
            )
        fates.append(Fate(name, "ignored", "a classifier has no use for it"))
    if missing_ours := set(shapes) - set(ours):
        raise UserError(f"{where} gives no {sorted(missing_ours)[0]}: it is another kind of model.")
    return ours, fates


def _one_after_another(rule: Rule, theirs: Sequence[Tensor], ours: Sequence[torch.Size]) -> Tensor | None:
    """All numbers of a rule in one sequence; None where their shapes are not the ones that make up ours."""
    shapes = [part.shape for part in theirs]
    if rule.read is not None:
        if len(set(shapes)) > 1:
            return None
        flat = rule.read(theirs).reshape(-1)
    elif len(theirs) == len(ours) == 1:
        if _without_ones(shapes[0]) != _without_ones(ours[0]):
            return None
        flat = theirs[0].reshape(-1)
    else:
        if len({shape[-1] for shape in (*shapes, *ours) if len(shape) > 1}) > 1:  # stacked along the first axis only
            return None
        flat = torch.cat([part.reshape(-1) for part in theirs])
    return flat if flat.numel() == sum(shape.numel() for shape in ours) else None


def _without_ones(shape: torch.Size) -> list[int]:
    return [length for length in shape if length != 1]
