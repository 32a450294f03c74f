"""A dialect: another library's names for our tensors, as one declarative two-way map."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.config import Architecture, ModelCard, Preprocessing, Size, ViTConfig, transformer
from vitrail.errors import UserError
from vitrail.model.build import blank, build
from vitrail.weights.report import Fate

Parts = Sequence[Tensor]


@dataclass(frozen=True)
class Layout:
    """How the numbers of some of their tensors stand in some of ours: two functions, each the other's inverse.

    ``write`` is None where reading loses something, as averaging two heads does.
    """

    read: Callable[[Parts, Any], Parts]
    write: Callable[[Parts, Any], Parts] | None


@dataclass(frozen=True)
class Rule:
    """Our tensors and theirs that hold the same numbers; ``{l}`` in a name stands for every layer."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout

    def of_layer(self, layer: int) -> Rule:
        """The rule with ``{l}`` filled in."""
        ours, theirs = (tuple(name.replace("{l}", str(layer)) for name in names) for names in (self.ours, self.theirs))
        return Rule(ours, theirs, self.layout)


def _each(change: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Layout:
    """The same change to each of as many tensors here as there."""
    return Layout(lambda parts, _: [change(part) for part in parts], lambda parts, _: [back(part) for part in parts])


SAME = _each(lambda part: part, lambda part: part)
TRANSPOSED = _each(lambda part: part.T, lambda part: part.T)  # a dense layer's matrix as (in, out)
KERNEL_LAST = _each(  # a convolution's kernel as (P, P, C, D), which is (D, C, P, P) here
    lambda part: part.permute(3, 2, 0, 1), lambda part: part.permute(2, 3, 1, 0)
)
BATCHED = _each(lambda part: part[0], lambda part: part[None])  # with an axis of length 1 in front


def stacked(count: int) -> Layout:
    """``count`` tensors of one shape, one after the other along the first axis here: q, k and v, or SwiGLU's halves."""
    return Layout(lambda parts, _: [torch.cat(list(parts))], lambda parts, _: parts[0].chunk(count))


def _read_tokens(parts: Parts, config: ViTConfig) -> Parts:
    return [torch.cat([part[0] for part in parts])]  # (1, n, D) each -> (T, D)


def _write_tokens(parts: Parts, config: ViTConfig) -> Parts:
    counts = [config.tokens.count(token) for token in dict.fromkeys(config.tokens)]
    return [part[None] for part in torch.split(parts[0], counts)]


TOKENS = Layout(_read_tokens, _write_tokens)
"""Learned tokens, each kind (1, how many, D); one after the other (T, D) here."""


def _read_table(parts: Parts, config: ViTConfig) -> Parts:
    h, w = config.grid
    table = parts[0][0]  # (T + h w, D)
    return [table[: -h * w], table[-h * w :].reshape(h, w, -1)]


def _write_table(parts: Parts, config: ViTConfig) -> Parts:
    return [torch.cat([parts[0], parts[1].flatten(0, 1)])[None]]  # (1, T + h w, D)


TABLE = Layout(_read_table, _write_table)
"""A table of positions (1, T + h w, D), special tokens first; their rows (T, D) and the grid (h, w, D) apart here."""
NOTHING = Layout(lambda _, config: [torch.zeros(0, config.encoder.width)], lambda *_: [])
"""No tensor there, where a model without special tokens, or with none that has a position, holds (0, D) here."""
GRID = Layout(
    lambda parts, config: [parts[0][0].reshape(*config.grid, -1)], lambda parts, _: [parts[0].flatten(0, 1)[None]]
)
"""A table of positions (1, h w, D) of patches alone."""


def _read_averaged(parts: Parts, config: ViTConfig) -> Parts:
    return [torch.cat([parts[0], parts[1]], dim=-1) / 2, (parts[2] + parts[3]) / 2]


AVERAGED = Layout(_read_averaged, None)
"""DeiT's two classifiers, averaged when predicting (2012.12877, section 3): one on both tokens' features here."""


def same(ours: str, theirs: str, kinds: Sequence[str] = ("weight", "bias")) -> list[Rule]:
    """Rules for the weight and bias of one layer that is called differently."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",), SAME) for kind in kinds]


def averaged_heads(first: str, second: str) -> list[Rule]:
    """The rule for two classifiers whose logits are averaged."""
    theirs = tuple(f"{head}.{kind}" for kind in ("weight", "bias") for head in (first, second))
    return [Rule(("classifier.weight", "classifier.bias"), theirs, AVERAGED)]


@dataclass(frozen=True)
class Checkpoint:
    """Somebody's checkpoint, understood: what its words mean in ours, their tensors, and how names map."""

    architecture: Architecture
    """At the resolution of the checkpoint's own position grid."""
    preprocessing: Preprocessing
    """At the resolution the source feeds it by default, which may be another one."""
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    """Regular expressions of their tensors that a classifier has no use for; all others must be known."""


@dataclass(frozen=True)
class Found:
    """What stands at a source, before anybody knows whose it is."""

    name: str
    """The source as the person named it, for messages."""
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] | None = None
    """Its ``config.json``, if it is a folder."""
    processor: Mapping[str, Any] | None = None
    """Its ``preprocessor_config.json``."""
    architecture: str | None = None
    """What the person says it is."""
    heads: int | None = None
    """How many attention heads the person says it has."""
    image_size: Size | None = None
    """What the person wants to feed it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Dialect(ABC):
    """One library's way to write a model down."""

    name: str

    @abstractmethod
    def claims(self, found: Found) -> bool:
        """Whether this is one of theirs."""

    @abstractmethod
    def read(self, found: Found) -> Checkpoint:
        """Understand it.

        Raises:
            UserError: a setting that Vitrail cannot honour, or something to be asked for.
        """


class TwoWay(Dialect):
    """A dialect that is written as well as read."""

    of: tuple[type[Any], ...] = (ViTConfig,)
    """Kinds of architectures it has names for."""
    suffix: str = ""
    """Of the file it writes; empty: a folder."""
    lost: tuple[str, ...] = ()
    """What it has no words for and a model can live without, such as class names: said when it is written."""

    @abstractmethod
    def write(self, card: ModelCard, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write a model to a file or folder, which is the caller's to make atomic.

        Raises:
            UserError: the dialect has no words for something that decides what the model answers.
        """


def named_classes(names: Sequence[Any], classes: int) -> tuple[str, ...]:
    """The class names of a configuration, for a classifier of so many; empty where there is none, or none are named.

    Raises:
        UserError: they are not as many as the classifier tells apart.
    """
    if classes and names and len(names) != classes:
        raise UserError(
            f"The configuration names {len(names)} classes, but the classifier tells {classes} apart: one of the two "
            "files is another model's."
        )
    return tuple(map(str, names)) if classes else ()


def per_layer(rules: Sequence[Rule], config: Architecture) -> list[Rule]:
    """Rules with ``{l}`` repeated for every layer, the others as they are."""
    result: list[Rule] = []
    for rule in rules:
        repeated = any("{l}" in name for name in rule.ours)
        result += [rule.of_layer(layer) for layer in range(config.layers)] if repeated else [rule]
    return result


def shapes(config: Architecture) -> dict[str, torch.Size]:
    """Our tensors and their shapes."""
    with blank():
        return {name: tensor.shape for name, tensor in build(config).state_dict().items()}


def translate(checkpoint: Checkpoint, where: str) -> tuple[dict[str, Tensor], list[Fate]]:
    """Their tensors under our names and in our shapes, and the fate of each.

    Args:
        where: the source, for messages.

    Raises:
        UserError: a tensor is missing, of a shape that does not fit, or not known to the dialect.
    """
    config, theirs = checkpoint.architecture, dict(checkpoint.tensors)
    needed = shapes(config)
    ours: dict[str, Tensor] = {}
    fates: list[Fate] = []
    for rule in per_layer(checkpoint.rules, config):
        if missing := [name for name in rule.theirs if name not in checkpoint.tensors]:
            raise UserError(
                f"{where} lacks the tensor {missing[0]}: it is incomplete, or not the architecture it says it is."
            )
        parts = [checkpoint.tensors[name] for name in rule.theirs]
        try:
            found = list(rule.layout.read(parts, config))
        except (RuntimeError, IndexError):  # so far from what it should be that it cannot even be reshaped
            found = []
        if [part.shape for part in found] != [needed[name] for name in rule.ours]:
            expected = ", ".join(f"{name} {tuple(needed[name])}" for name in rule.ours)
            given = ", ".join(f"{name} {tuple(checkpoint.tensors[name].shape)}" for name in rule.theirs)
            raise UserError(
                f"{where} does not fit the architecture it says it is: {expected} needed, {given} found; "
                "check its configuration (heads, widths, image size)."
            )
        source = ", ".join(rule.theirs)
        for name, part in zip(rule.ours, found, strict=True):
            ours[name] = part.clone(memory_format=torch.contiguous_format)
            fates.append(Fate(name, "loaded", f"from {source}"))
        for name in rule.theirs:
            theirs.pop(name, None)
    for name in theirs:
        if not any(re.fullmatch(pattern, name) for pattern in checkpoint.ignored):
            raise UserError(
                f"{where} holds a tensor {name} that this architecture has no place for: it is another kind of model."
            )
        fates.append(Fate(name, "ignored", "a classifier has no use for it"))
    if missing_ours := set(needed) - set(ours):
        raise UserError(f"{where} gives no {sorted(missing_ours)[0]}: it is another kind of model.")
    return ours, fates


def translate_back(rules: Sequence[Rule], config: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes: ``translate`` backwards, bit for bit.

    Raises:
        UserError: one of ours was made of several of theirs in a way that cannot be undone.
    """
    theirs: dict[str, Tensor] = {}
    for rule in per_layer(rules, config):
        if rule.layout.write is None:
            raise UserError(
                f"{', '.join(rule.ours)} cannot be written as {', '.join(rule.theirs)}: DeiT's two classifiers were "
                "averaged into one when they were read; write it as vitrail, or drop the head."
            )
        written = rule.layout.write([tensors[name] for name in rule.ours], config)
        theirs.update(zip(rule.theirs, (part.contiguous() for part in written), strict=True))
    return theirs


def facets(config: ViTConfig) -> dict[str, Any]:
    """What decides a model's answers beyond its sizes: each dialect has words for some values of each."""
    encoder, head, position = config.encoder, config.head, config.position
    return {
        "an MLP of kind": encoder.mlp,
        "a LayerNorm epsilon of": encoder.norm_eps,
        "LayerScale:": encoder.layer_scale is not None,
        "biases of queries, keys and values:": encoder.qkv_bias,
        "learned tokens": config.tokens[: len(config.tokens) - config.registers],
        "register tokens:": config.registers > 0,
        "positions of kind": position.kind,
        "positions at": position.place,
        "positions of the learned tokens:": position.special or not config.tokens,
        "a head on": head.parts,
        "a head that sees layers from the last:": head.layers,
        "a last LayerNorm on": head.norm,
        "pre-logits:": head.prelogits is not None,
        "a classifier:": head.classes > 0,
        "a ResNet before the patches:": config.stem is not None,
        "channels:": config.channels,
        "a square image and patch:": config.image_size[0] == config.image_size[1]
        and config.patch[0] == config.patch[1],
    }


def sayable(library: str, words: Mapping[str, Collection[Any]], architecture: Architecture) -> ViTConfig:
    """The architecture, or UserError for the first facet of it that a dialect has no word for.

    Args:
        library: whose dialect, as in "torchvision's ViT".
        words: the values it can say, by facet; it can say all of a facet that is not listed.
    """
    config = transformer(architecture, library)
    can_be_without = False in words.get("a classifier:", (False,))
    for facet, value in facets(config).items():
        if facet in words and value not in words[facet]:
            only = " or ".join(_plain(word) for word in words[facet])
            otherwise = "drop the head" if facet.startswith("a head") and can_be_without else "change the model first"
            raise UserError(
                f"{library} has no words for {facet} {_plain(value)}, only for {only}: "
                f"convert it to vitrail, which says everything, or {otherwise}."
            )
    return config


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " and ".join(value) or "none" if isinstance(value, tuple) else str(value)
