"""Where attention goes: raw maps, rollout, and relevance for a class (ViT figure 6 and appendix D.8; article 6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitrail.analyze.stream import Kind, Statistic
from vitrail.config import ViTConfig
from vitrail.errors import UserError
from vitrail.model.encoder import Trace
from vitrail.model.vision import VisionTransformer

Fusion = Literal["mean", "max", "min"]
Query = Literal["class", "mean"] | tuple[int, int]
"""Whose attention: the class token's, the average patch's, or that of the patch at (row, column)."""


def query_rows(config: ViTConfig, query: Query) -> slice:
    """The tokens that ``query`` means, of which maps are averaged.

    Raises:
        UserError: the model has no class token, or no patch there.
    """
    special, (h, w) = len(config.tokens), config.grid
    if query == "mean":
        return slice(special, config.sequence)
    if query == "class":
        if "class" not in config.tokens:
            raise UserError("The model has no class token: ask for the attention of a patch, or of their mean.")
        token = config.tokens.index("class")
    else:
        row, column = query
        if not (0 <= row < h and 0 <= column < w):
            raise UserError(
                f"There is no patch at row {row}, column {column}: rows go from 0 to {h - 1}, columns to {w - 1}."
            )
        token = special + row * w + column
    return slice(token, token + 1)


def usual_query(config: ViTConfig) -> Query:
    """The class token's attention where there is one, else the average patch's."""
    return "class" if "class" in config.tokens else "mean"


def to_patches(matrix: Tensor, config: ViTConfig, query: Query) -> Tensor:
    """Rows of (..., N, N) for ``query``, special tokens left out: maps (..., h, w), summing to what patches get."""
    row = matrix[..., query_rows(config, query), len(config.tokens) :].mean(dim=-2)  # (..., h w)
    return row.reshape(*row.shape[:-1], *config.grid)


def fuse(weights: Tensor, fusion: Fusion = "mean", discard: float = 0.0) -> Tensor:
    """One layer's attention (B, K, N, N) as rollout counts it: rows of (A + I), made to sum to 1, (B, N, N).

    For the mean of heads that is the (A + I) / 2 of Abnar & Zuidema (2005.00928, section 3), half of it
    standing for the residual connection. Heads may be fused by their maximum or minimum instead, and
    the share ``discard`` of each image's smallest fused weights set to zero before, as is the practice
    with ViTs since vit-explain; rows are normalised after that.
    """
    weights = weights.float()
    fused = weights.mean(dim=1) if fusion == "mean" else weights.amax(dim=1) if fusion == "max" else weights.amin(dim=1)
    if discard > 0.0:
        flat = fused.flatten(1)  # (B, N N)
        dropped = flat.topk(int(discard * flat.shape[1]), largest=False).indices
        fused = flat.scatter(1, dropped, 0.0).view_as(fused)
    fused = fused + torch.eye(fused.shape[-1], device=fused.device)
    return fused / fused.sum(dim=-1, keepdim=True)


class Rollout(Statistic):
    """Attention rolled out through the layers (2005.00928): how much of each input token flows into each output.

    After a batch ``product`` is (B, N, N), its rows summing to 1: the layers' ``fuse`` multiplied, the
    last on the left.
    """

    def __init__(self, layers: int, fusion: Fusion = "mean", discard: float = 0.0) -> None:
        if not 0.0 <= discard < 1.0:
            raise UserError(f"The share of attention to discard must lie in [0, 1), not {discard}.")
        self.attention = range(layers)
        self.fusion, self.discard = fusion, discard
        self.product = torch.empty(0)

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """Attention weights (B, K, N, N) of the next layer."""
        step = fuse(values, self.fusion, self.discard)
        self.product = step if layer == 0 else step @ self.product


def rollout(weights: Sequence[Tensor], fusion: Fusion = "mean", discard: float = 0.0) -> Tensor:
    """Attention weights of all layers from the first on, (B, K, N, N) each -> rolled out, (B, N, N)."""
    found = Rollout(len(weights), fusion, discard)
    for layer, values in enumerate(weights):
        found.receive("attention", layer, values)
    return found.product


def attention_weights(model: VisionTransformer, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
    """The attention weights (B, K, N, N) of ``layers``, by default all, whatever the other layers run on.

    They are held all at once: for statistics of many images use ``stream.observe``.

    Raises:
        UserError: there is no such layer, or the images are not of the model's size.
    """
    seen: dict[int, Tensor] = {}
    wanted = range(model.config.encoder.layers) if layers is None else layers
    model.encode(images, 1, Trace(lambda kind, layer, weights: seen.__setitem__(layer, weights), attention=wanted))
    return [seen[layer] for layer in wanted]


@dataclass(frozen=True)
class Relevance:
    """What of the tokens speaks for a class."""

    matrix: Tensor
    """(B, N, N): relevance of token j for token i; the identity is what a token has of itself."""
    classes: Tensor
    """(B,) the class of each image that it is for."""

    def to_patches(self, config: ViTConfig) -> Tensor:
        """What each patch has to say to the tokens that the head reads, added up over these: maps (B, h, w).

        The paper takes the class token's row. Where the head reads patches (their mean, or attention pooling)
        that row says nothing, and what a patch has of itself, the identity, would drown the rest: it is left out.
        """
        special, everything = len(config.tokens), range(config.sequence)
        tokens = {"map": everything, "mean": everything[special:]}
        read = {token for part in config.head.parts for token in tokens.get(part) or (config.tokens.index(part),)}
        own = torch.eye(config.sequence, dtype=self.matrix.dtype, device=self.matrix.device)
        rows = (self.matrix - own)[:, sorted(read), special:]  # (B, read, h w)
        return rows.sum(dim=1).reshape(-1, *config.grid)


def relevance(model: VisionTransformer, images: Tensor, classes: Sequence[int] | None = None) -> Relevance:
    """Gradient-weighted attention for a class (Chefer et al., 2103.15679, equations 5 and 6).

    In each layer attention is weighted with the gradient of the class's logit, its negative part cut off and
    the heads averaged, A' = mean_k (dy/dA * A)^+; then R <- R + A' R, from R = I. Parameters get no gradient.

    Args:
        images: (B, C, H, W).
        classes: one an image; by default the likeliest.

    Raises:
        UserError: the model has no classifier, or there is no such class.
    """
    seen: list[Tensor] = []
    trace = Trace(lambda kind, layer, weights: seen.append(weights), attention=range(model.config.encoder.layers))
    with torch.enable_grad():
        # So that there is a graph even where all parameters are frozen.
        logits = model(images.detach().clone().requires_grad_(), trace)  # (B, classes)
        chosen = logits.argmax(dim=-1) if classes is None else torch.tensor(classes, device=logits.device)
        if unknown := [label for label in chosen.tolist() if not 0 <= label < logits.shape[1]]:
            raise UserError(f"There is no class {unknown[0]}: the model has classes 0 to {logits.shape[1] - 1}.")
        score = logits.gather(1, chosen[:, None]).sum()
        gradients = torch.autograd.grad(score, seen)
    identity = torch.eye(seen[0].shape[-1], dtype=logits.dtype, device=logits.device)
    matrix = identity.expand(len(images), -1, -1)  # (B, N, N)
    for weights, gradient in zip(seen, gradients, strict=True):
        weighted = (gradient * weights.detach()).to(logits.dtype).clamp(min=0).mean(dim=1)  # (B, N, N)
        matrix = matrix + weighted @ matrix
    return Relevance(matrix, chosen)
