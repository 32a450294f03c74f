"""LoRA: a low-rank update beside frozen dense layers (2106.09685), by the role they play.

Queries, keys and values are three matrices that stand in one dense layer here, and so are the two halves
of SwiGLU's first layer; each is adapted apart, and the others of its layer stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.model.dropout import Dropout
from vitrail.model.vision import VisionTransformer
from vitrail.parts import EncoderConfig, LoraConfig, Role


def adaptable(encoder: EncoderConfig) -> dict[str, dict[str, Role]]:
    """A block's dense layers, and of each the matrices stacked in it with their roles.

    They are called as the roles are, but for the halves of SwiGLU's first layer: ``gate`` and ``up``.
    """
    fc1: dict[str, Role] = {"gate": "fc1", "up": "fc1"} if encoder.mlp == "swiglu" else {"fc1": "fc1"}
    return {
        "attention.qkv": {"q": "q", "k": "k", "v": "v"},
        "attention.out": {"out": "out"},
        "mlp.fc1": fc1,
        "mlp.fc2": {"fc2": "fc2"},
    }


class LoraLinear(nn.Linear):
    """W x + b + scale B A x for some of the matrices that stand one after the other in W.

    Section 4.1: A (r, in) is random and B (out, r) zero, so that training starts from the layer as it
    was. The paper's text draws A from a Gaussian; its code, and peft, uniformly from +-1 / sqrt(in)
    (Kaiming's rule with a = sqrt(5)), which is what is done here. W and b keep their names.
    """

    def __init__(self, linear: nn.Linear, matrices: Mapping[str, Role], config: LoraConfig) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.matrices = tuple(matrices)
        self.config = config
        self.dropout = Dropout(config.dropout)
        adapted = [name for name, role in matrices.items() if role in config.roles]
        rows = linear.out_features // len(matrices)
        # Linear's own initialisation is the one wanted of A.
        self.lora_A = nn.ModuleDict({name: nn.Linear(self.in_features, config.rank, bias=False) for name in adapted})
        self.lora_B = nn.ModuleDict({name: nn.Linear(config.rank, rows, bias=False) for name in adapted})
        for matrix in self.lora_B.parameters():
            nn.init.zeros_(matrix)
        self.to(self.weight).train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        parts = list(super().forward(input).chunk(len(self.matrices), dim=-1))  # each (..., out / matrices)
        for i, name in enumerate(self.matrices):
            if name in self.lora_A:
                update = self.lora_B[name](self.lora_A[name](self.dropout(input)))
                parts[i] = parts[i] + self.config.scale * update
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with W + scale B A for its matrices, added in double precision and rounded once."""
        weight = self.weight.to(torch.float64, copy=True)  # (out, in)
        for part, name in zip(weight.chunk(len(self.matrices)), self.matrices, strict=True):
            if name in self.lora_A:
                a, b = (self.get_parameter(f"lora_{side}.{name}.weight").double() for side in "AB")
                part += self.config.scale * (b @ a)
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(weight.to(self.weight.dtype)), self.bias
        return plain.train(self.training)


def add_lora(model: VisionTransformer, config: LoraConfig, seed: int = 0, train_classifier: bool = True) -> None:
    """Put low-rank updates beside the dense layers of ``config``, in place, and freeze all the rest.

    What the model computes stays, bit for bit, until something is learned.

    Args:
        seed: of the matrices A; on any device they are the same.
        train_classifier: whether the classifier, if there is one, goes on learning.

    Raises:
        UserError: there is no such layer, or the model has LoRA already.
    """
    blocks = model.encoder.blocks
    if lora_config(model) is not None:
        raise UserError("The model has LoRA already: merge it before adding another.")
    layers = range(len(blocks)) if config.layers is None else config.layers
    if unknown := [layer for layer in layers if not 0 <= layer < len(blocks)]:
        raise UserError(f"There is no layer {unknown[0]} to adapt: the model has layers 0 to {len(blocks) - 1}.")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        for layer in sorted(layers):
            for name, matrices in adaptable(model.config.encoder).items():
                if set(matrices.values()) & set(config.roles):
                    linear = blocks[layer].get_submodule(name)
                    assert isinstance(linear, nn.Linear)
                    blocks[layer].set_submodule(name, LoraLinear(linear, matrices, config))
    if train_classifier and model.classifier is not None:
        model.classifier.requires_grad_(True)


def merge(model: nn.Module) -> None:
    """Fold what was learned into the weights, in place: plain layers again, all of which can learn.

    A model without LoRA stays as it is, but for that.
    """
    for name, layer in list(_adapted(model)):
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)


def lora_config(model: VisionTransformer) -> LoraConfig | None:
    """What ``add_lora`` was asked for; None: the model has no LoRA."""
    return next((layer.config for _, layer in _adapted(model)), None)


def lora_parameters(model: VisionTransformer) -> int:
    """How many numbers all the matrices A and B hold: r (in + out) for each matrix that is adapted."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module
