"""A paper's settings for one result, in the field's own terms, and for each of them where it stands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vitrail.config import ViTConfig, size_text
from vitrail.errors import UserError
from vitrail.recipes.source import Data, Learned, Result, Source, Span, Views
from vitrail.record import to_dict

PAPERS = {"2010.11929": "ViT", "2111.06377": "MAE", "2104.02057": "MoCo v3"}
"""Short names of the papers."""
MARKS = {"stated": "", "unverified": " ?", "assumed": " *"}
"""Behind a value in a listing, by the kind of its source."""


@dataclass(frozen=True)
class Recipe:
    """How one result came about. Every setting has exactly one source.

    Raises:
        UserError: a setting has no source or two, or a source is for a setting that the recipe does not have.
    """

    name: str
    makes: Literal["pretrain", "finetune"]
    paper: str | None
    """arXiv number; None: our own."""
    where: str
    """The table or section that the result is from."""
    variant: str
    architecture: ViTConfig
    """With the classifier for ``data`` where labels are learned, at the resolution that is trained at."""
    objective: Learned
    data: Data
    batch_size: int
    """Images in all, on however many devices."""
    duration: Span
    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    """At its highest, for ``batch_size``."""
    schedule: Literal["cosine", "linear"]
    warmup: Span
    weight_decay: float
    hardware: str
    sources: tuple[Source, ...]
    start: str | None = None
    """The recipe whose model is fine-tuned."""
    betas: tuple[float, float] | None = None
    """Of AdamW."""
    momentum: float | None = None
    """Of SGD."""
    searched: tuple[float, float] | None = None
    """Ends of the range in which the paper looked for the best learning rate."""
    scaling: Literal["linear"] | None = None
    """How the learning rate goes with the batch; None: nothing is said of it."""
    layer_decay: float = 1.0
    """Each layer's rate is that of the one above times this."""
    clip: float | None = None
    """Largest norm of all gradients together."""
    average: float | None = None
    """Decay of the exponential average of the weights; None: none is kept."""
    label_smoothing: float = 0.0
    views: Views | None = None
    """None: the objective's own."""
    reported: tuple[Result, ...] = ()

    def __post_init__(self) -> None:
        named = Counter(setting for source in self.sources for setting in source.settings)
        needed = self.settings().keys()
        if missing := [name for name in needed if not named[name]]:
            raise UserError(f"The recipe {self.name} says of {', '.join(missing)} neither where it stands nor why.")
        if unknown := [name for name in named if name not in needed]:
            raise UserError(f"The recipe {self.name} has a source for {unknown[0]}, which is none of its settings.")
        if double := [name for name, times in named.items() if times > 1]:
            raise UserError(f"The recipe {self.name} has more than one source for {double[0]}: keep one.")

    @property
    def command(self) -> str:
        """The command line for it; DATA is the user's copy of ``data``, RUN what ``start`` made.

        ``finetune`` is told every setting outright; its own remain that training begins from a probe's head, where
        the papers' is zero, and that labels are smoothed by 0.1.
        """
        if self.makes == "pretrain":
            return f"vitrail pretrain DATA --recipe {self.name}"
        (height, width), epochs = self.architecture.image_size, self.steps() * self.batch_size / self.data.images
        pixels = str(height) if height == width else f"{height}x{width}"
        words = f"vitrail finetune DATA --weights RUN --method full --resolution {pixels}"
        words += f" --batch-size {self.batch_size} --epochs {math.ceil(epochs)}"
        return words + "".join(f" --set {name}={value}" for name, value in self._tuning())

    @property
    def what(self) -> str:
        """The result in a few words."""
        learned = "" if self.objective.kind == "supervised" else f", {self.objective.kind}"
        return f"{self.makes} {self.variant}{learned}"

    @property
    def cited(self) -> str:
        """The paper and the place in it."""
        return self.where if self.paper is None else f"arXiv {self.paper}, {self.where}"

    @property
    def accuracy(self) -> str:
        """What was reported, in words."""
        return "; ".join(map(str, self.reported)) or "none known here"

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the settings that are ours; ``source`` has the reason for each."""
        return self._named("assumed")

    @property
    def unverified(self) -> tuple[str, ...]:
        """Names of the settings that have not been held against the paper."""
        return self._named("unverified")

    def source(self, setting: str) -> Source:
        """Where a setting comes from."""
        return next(source for source in self.sources if setting in source.settings)

    def listed(self) -> list[str]:
        """A row for a person: name, what is made, of which data, the first accuracy reported in percent, source."""
        first = f"{self.reported[0].value}{MARKS[self.source('reported').kind]}" if self.reported else "-"
        source = self.where if self.paper is None else f"{PAPERS[self.paper]}, {self.where}"
        return [self.name, self.makes, self.data.name, first, source]

    def steps(self, images: int | None = None, batch_size: int | None = None) -> int:
        """Steps of the whole training; for another data set or batch where it is counted in epochs."""
        return self.duration.steps(images or self.data.images, batch_size or self.batch_size)

    def warmup_steps(self, images: int | None = None, batch_size: int | None = None) -> int:
        """Steps in which the learning rate rises."""
        return self.warmup.steps(images or self.data.images, batch_size or self.batch_size)

    def rate(self, batch_size: int) -> float:
        """The learning rate for another batch, as ``scaling`` says; the same where nothing is said."""
        return self.learning_rate * (batch_size / self.batch_size if self.scaling == "linear" else 1.0)

    def settings(self) -> dict[str, str]:
        """Every setting in words, by name: exactly what needs a source."""
        return {name: text for name, text in self._all() if text is not None}

    def describe(self) -> list[tuple[str, str, str]]:
        """Rows for a person: setting, value, and where that stands or that it is assumed or unverified, and why."""
        return [(name, text, str(self.source(name))) for name, text in self.settings().items()]

    def summary(self) -> dict[str, Any]:
        """What a listing says, as plain JSON values."""
        return {
            "name": self.name,
            "what": self.what,
            "data": self.data.name,
            "reported": [asdict(result) for result in self.reported],
            "reported_is": self.source("reported").kind,
            "source": self.cited,
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it and what follows from it, as plain JSON values."""
        return {
            **self.summary(),
            **to_dict(self),
            "source": self.cited,
            "command": self.command,
            "steps": self.steps(),
            "warmup_steps": self.warmup_steps(),
            "assumed": list(self.assumed),
            "unverified": list(self.unverified),
        }

    def _tuning(self) -> Iterator[tuple[str, str]]:
        """What ``finetune`` is to be told to do otherwise than it usually does."""
        rising = self.warmup_steps()
        yield "optimizer", self.optimizer
        if self.betas is not None:
            yield "betas", ",".join(f"{beta:g}" for beta in self.betas)
        yield from (
            ("learning_rate", f"{self.learning_rate:g}"),
            ("schedule", self.schedule),
            ("warmup", f"{rising:g}"),
            ("weight_decay", f"{self.weight_decay:g}"),
            ("layer_decay", f"{self.layer_decay:g}"),
            ("clip", f"{self.clip or 0:g}"),
            ("average", f"{0 if self.average is None else 1 / (1 - self.average):g}"),
        )
        views = Views(smallest_crop=1.0) if self.views is None else self.views
        names = ("smallest_crop", "flip", "operations", "magnitude", "erase", "mixup", "cutmix", "mixing")
        yield from ((name, f"{getattr(views, name):g}") for name in names)

    def _all(self) -> Iterator[tuple[str, str | None]]:
        encoder, labels = self.architecture.encoder, self.objective.kind == "supervised"
        views = Views(smallest_crop=1.0) if self.views is None else self.views
        shape = f"{encoder.layers} layers of width {encoder.width}, {encoder.heads} heads, MLP {encoder.mlp_width}"
        yield "start", self.start
        yield "variant", f"{self.variant}: {shape}"
        yield "position", self.architecture.position.kind
        yield "head", _head(self.architecture)
        yield "dropout", f"{encoder.dropout:g}"
        yield "drop_path", f"{encoder.drop_path:g}"
        yield "resolution", size_text(self.architecture.image_size)
        yield "objective", str(self.objective)
        yield from ((f"objective.{name}", str(value)) for name, value in self.objective.arguments.items())
        yield "label_smoothing", f"{self.label_smoothing:g}" if labels else None
        yield "mixup", f"{views.mixup:g}" if labels else None
        yield "cutmix", f"{views.cutmix:g}" if labels else None
        yield "mixing", f"{views.mixing:g}" if views.mixup or views.cutmix else None
        yield "augmentation", "the objective's own" if self.views is None else str(views)
        yield "data", str(self.data)
        yield "classes", (f"{self.data.classes:,}" if self.data.classes else "each task's own") if labels else None
        yield "batch_size", f"{self.batch_size:,}"
        yield "duration", self._in_steps(self.duration)
        yield "optimizer", self.optimizer
        yield "betas", None if self.betas is None else ", ".join(f"{beta:g}" for beta in self.betas)
        yield "momentum", None if self.momentum is None else f"{self.momentum:g}"
        yield "learning_rate", f"{self.learning_rate:g}"
        yield "searched", None if self.searched is None else f"{self.searched[0]:g} to {self.searched[1]:g}"
        yield "scaling", f"{self.scaling} in the batch" if self.scaling else "none"
        yield "schedule", self.schedule
        yield "warmup", self._in_steps(self.warmup)
        yield "weight_decay", f"{self.weight_decay:g}"
        yield "layer_decay", f"{self.layer_decay:g}"
        yield "clip", "none" if self.clip is None else f"{self.clip:g}"
        yield "average", "none" if self.average is None else f"{self.average:g}"
        yield "hardware", self.hardware
        yield "reported", self.accuracy

    def _in_steps(self, span: Span) -> str:
        steps = span.steps(self.data.images, self.batch_size)
        return str(span) if span.unit == "steps" else f"{span} ({steps:,} steps)"

    def _named(self, kind: str) -> tuple[str, ...]:
        return tuple(name for name in self.settings() if self.source(name).kind == kind)


def _head(config: ViTConfig) -> str:
    head = config.head
    pooled = "class token" if head.parts == ("class",) else f"{' and '.join(head.parts)} of the tokens"
    norm = ", LayerNorm after pooling" if head.norm == "pooled" else ""
    return pooled + norm + ("" if head.prelogits is None else f", pre-logits of width {head.prelogits}")
