"""One way to run a model on a batch: which device, which precision, how fast."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from vitrail.errors import UserError
from vitrail.model.build import Model
from vitrail.model.encoder import Trace
from vitrail.model.heads import NO_CLASSIFIER, Pooling
from vitrail.model.vision import VisionTransformer
from vitrail.runtime.device import native_bf16, pick_device
from vitrail.runtime.plan import Backend, Precision

Result = TypeVar("Result")


class Engine(Protocol):
    """What computes a model's features in another way than the model itself."""

    backend: Backend
    precision: Precision
    sizes: tuple[int, ...]
    """Of the batches that it is compiled for, each when it first comes, smallest first; none: it takes any."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 on the CPU -> the features (B, F) that the classifier sees, float32."""


@dataclass(frozen=True)
class Predictor:
    """A model on a device, in bf16 autocast where that is native; features and logits come out in float32."""

    model: Model
    device: torch.device
    bf16: bool
    engine: Engine | None = None
    frozen: tuple[tuple[Tensor, int], ...] = ()
    """Weights that the engine has its own copy of, and how often each had been written to when that was taken."""

    @classmethod
    def of(cls, model: Model, device: str | None = None) -> Predictor:
        """Move ``model`` to the device and put it in evaluation mode."""
        where = pick_device(device)
        return cls(model.to(where).eval(), where, native_bf16(where))

    def by(self, engine: Engine) -> Predictor:
        """The same model, its features computed by ``engine``."""
        weights = [] if engine.backend == "eager" else list(self.model.state_dict(keep_vars=True).items())
        # A tensor that was made in inference mode counts nothing, and cannot be written to outside of it.
        kept = [one for name, one in weights if not name.startswith("classifier.") and not one.is_inference()]
        return replace(self, engine=engine, frozen=tuple((one, one._version) for one in kept))

    @property
    def precision(self) -> Precision:
        """Of the products that make features."""
        if self.engine is not None:
            return self.engine.precision
        return "bf16" if self.bf16 else "fp32"

    @property
    def name(self) -> str:
        """How it is run, such as ``openvino:int8``."""
        return f"{'eager' if self.engine is None else self.engine.backend}:{self.precision}"

    @property
    def quick(self) -> bool:
        """Whether pictures may be resized quickly: an engine was asked for that changes more than that does."""
        return self.engine is not None and self.precision != "fp32"

    def sizes(self, most: int) -> tuple[int, ...]:
        """Those that the engine is compiled for where batches have up to ``most`` pictures; none: it takes any."""
        sizes = () if self.engine is None else self.engine.sizes
        return sizes[: bisect_left(sizes, most) + 1]  # the last holds them all, or is the largest

    def features(self, images: Tensor, pooling: Pooling | None = None) -> Tensor:
        """(B, C, H, W) -> (B, F) on the CPU: what the classifier, or another pooling, sees.

        Raises:
            UserError: the model's weights have changed since the engine was built of them.
        """
        if self.engine is not None and pooling is None:
            if any(weight._version != version for weight, version in self.frozen):
                raise UserError(
                    f"The model's weights have changed since {self.name} was built of them: save the model and load "
                    "that, or load it with runtime='eager'."
                )
            return self.engine(images)
        pool = pooling or self.model.pooling
        return self._run(lambda batch: self.model.pool(batch, pool), images).float().cpu()

    def encode(self, images: Tensor, trace: Trace | None = None) -> None:
        """Run the encoder on (B, C, H, W) for what ``trace`` wants to see of it.

        Raises:
            UserError: the model has none.
        """
        model = self.model
        if not isinstance(model, VisionTransformer):
            raise UserError("A convolutional network has no attention to look at: take a Vision Transformer.")
        self._run(lambda batch: model.encode(batch, 1, trace), images)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> features (B, F) and logits (B, classes), on the CPU.

        Raises:
            UserError: the model has no classifier.
        """
        if self.model.classifier is None:
            raise UserError(NO_CLASSIFIER)
        features = self.features(images)
        with torch.inference_mode():
            return features, self.model.classify(features.to(self.device)).float().cpu()

    def _run(self, function: Callable[[Tensor], Result], images: Tensor) -> Result:
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return function(images.to(self.device))
