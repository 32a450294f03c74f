"""One way to run a model on a batch: which device, which precision, how fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vitrail.errors import UserError
from vitrail.model.encoder import Trace
from vitrail.model.heads import Pooling
from vitrail.model.vision import VisionTransformer

Result = TypeVar("Result")


def pick_device(name: str | None = None) -> torch.device:
    """The device asked for, or the fastest kind this machine has.

    Raises:
        UserError: there is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # meta has no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"There is no device {name!r} on this machine: leave the choice out, or say cpu.") from None
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices itself; emulating it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(frozen=True)
class Runner:
    """A model on a device, in bf16 autocast where that is native; features and logits come out in float32."""

    model: VisionTransformer
    device: torch.device
    bf16: bool

    @classmethod
    def of(cls, model: VisionTransformer, device: str | None = None) -> Runner:
        """Move ``model`` to the device and put it in evaluation mode."""
        where = pick_device(device)
        return cls(model.to(where).eval(), where, native_bf16(where))

    @property
    def precision(self) -> str:
        """``bf16`` or ``fp32``."""
        return "bf16" if self.bf16 else "fp32"

    def features(self, images: Tensor, pooling: Pooling | None = None) -> Tensor:
        """(B, C, H, W) -> (B, F) on the CPU: what the classifier, or another pooling, sees."""
        pool = pooling or self.model.pooling
        return self._run(lambda batch: self.model.pool(batch, pool), images).float().cpu()

    def encode(self, images: Tensor, trace: Trace | None = None) -> None:
        """Run the encoder on (B, C, H, W) for what ``trace`` wants to see of it."""
        self._run(lambda batch: self.model.encode(batch, 1, trace), images)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> features (B, F) and logits (B, classes), on the CPU.

        Raises:
            UserError: the model has no classifier.
        """
        if self.model.classifier is None:
            raise UserError("This model has no classifier: fine-tune it first, or ask for its features.")
        features = self.features(images)
        with torch.inference_mode():
            return features, self.model.classify(features.to(self.device)).float().cpu()

    def _run(self, function: Callable[[Tensor], Result], images: Tensor) -> Result:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return function(images.to(self.device))
