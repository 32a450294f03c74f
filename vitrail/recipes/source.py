"""What a recipe is made of: where a setting stands, lengths of training, data sets, accuracies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.errors import UserError

SourceKind = Literal["stated", "unverified", "assumed"]


@dataclass(frozen=True)
class Source:
    """Where some of a recipe's settings come from.

    ``stated`` in the paper, at ``text``; ``unverified``: said to stand there, but not held against it;
    ``assumed``: the paper does not state it as far as is known here, and ``text`` is the reason for ours.
    """

    kind: SourceKind
    text: str
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return self.text if self.kind == "stated" else f"{self.kind}: {self.text}"


def stated(text: str, *settings: str) -> Source:
    """Settings that the paper states, and where: a table or a section."""
    return Source("stated", text, settings)


def unverified(text: str, *settings: str) -> Source:
    """Settings that are said to be the paper's, but have not been held against it."""
    return Source("unverified", text, settings)


def assumed(text: str, *settings: str) -> Source:
    """Settings that are our own, and the reason for each."""
    return Source("assumed", text, settings)


@dataclass(frozen=True)
class Span:
    """A length of training."""

    amount: float
    unit: Literal["epochs", "steps"]

    def __post_init__(self) -> None:
        if not self.amount >= 0:
            raise UserError(f"A span of training is 0 {self.unit} or more, not {self.amount:g}.")

    def steps(self, images: int, batch_size: int) -> int:
        """In steps, rounded at the end alone: so many epochs are epochs * images / batch_size steps."""
        return round(self.amount if self.unit == "steps" else self.amount * images / batch_size)

    def __str__(self) -> str:
        return f"{self.amount:,.10g} {self.unit}"


@dataclass(frozen=True)
class Data:
    """A data set to train on."""

    name: str
    images: int
    """How many there are to train on."""
    classes: int | None = None
    """None: a number for each of its tasks, or no labels."""

    def __str__(self) -> str:
        return f"{self.name}, {self.images:,} images"


@dataclass(frozen=True)
class Learned:
    """Which objective, with what its constructor is to be told; what is not named here it is not told."""

    kind: Literal["supervised", "masked-patches", "mae", "moco-v3"]
    arguments: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    """What is fixed in the objective itself."""

    def __str__(self) -> str:
        return f"{self.kind} ({self.note})" if self.note else self.kind


@dataclass(frozen=True)
class Views:
    """How differently a photo is seen each time; a strength of 0 is none. Names as in ``Augmentation``."""

    smallest_crop: float
    """Smallest share of a photo's area that a random crop may take."""
    flip: float = 0.5
    operations: int = 0
    """RandAugment's N; its strength M is ten times ``magnitude``."""
    magnitude: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixing: float = 1.0
    """Chance that photos are mixed, where ``mixup`` or ``cutmix`` says how."""

    def __str__(self) -> str:
        parts = [f"crops of {100 * self.smallest_crop:g} % and more", f"flips {self.flip:g}"]
        if self.operations:
            parts.append(f"RandAugment {self.operations} at {10 * self.magnitude:g}")
        if self.erase:
            parts.append(f"erasing {self.erase:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Result:
    """An accuracy that was reported."""

    accuracy: float
    """Top-1, in percent."""
    data: str
    spread: float | None = None
    """Standard deviation over runs."""
    how: str = ""
    """What was done with a pretrained model before: fine-tuned, linear probe."""

    @property
    def value(self) -> str:
        """The accuracy as printed: two decimals where there is a spread."""
        return f"{self.accuracy:g}" if self.spread is None else f"{self.accuracy:.2f}"

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" +- {self.spread:.2f}"
        return f"{self.value}{spread} % on {self.data}" + (f", {self.how}" if self.how else "")
