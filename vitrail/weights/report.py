"""What happened to every tensor of a checkpoint: loaded, resampled, new or ignored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

What = Literal["loaded", "resampled", "new", "ignored"]


@dataclass(frozen=True)
class Fate:
    """One tensor's fate; ``note`` says from where, or how."""

    tensor: str
    what: What
    note: str


@dataclass(frozen=True)
class LoadReport:
    """Fates of all tensors: ours by our names, ignored ones by theirs."""

    source: str
    fates: tuple[Fate, ...]

    def __iter__(self) -> Iterator[Fate]:
        return iter(self.fates)

    def of(self, what: What) -> list[Fate]:
        """The fates of one kind."""
        return [fate for fate in self.fates if fate.what == what]

    def summary(self) -> str:
        """One sentence, such as ``174 tensors loaded, position.grid resampled 37x37 -> 16x16 (bicubic)``."""
        loaded = len(self.of("loaded"))
        phrases = [f"{loaded} tensors loaded"]
        resampled = self.of("resampled")
        for note, count in Counter(
            fate.note for fate in resampled
        ).items():  # as many layers as there are may share one
            first = next(fate.tensor for fate in resampled if fate.note == note)
            phrases.append(f"{first if count == 1 else f'{count} tensors'} resampled {note}")
        for note, count in Counter(fate.note for fate in self.of("new")).items():
            phrases.append(f"{count} new ({note})")
        if ignored := self.of("ignored"):
            groups = dict.fromkeys(fate.tensor.partition(".")[0] for fate in ignored)
            phrases.append(f"{len(ignored)} ignored ({', '.join(groups)})")
        return f"{self.source}: " + ", ".join(phrases)

    def __str__(self) -> str:
        width = max((len(fate.tensor) for fate in self.fates), default=0)
        lines = [f"{fate.tensor:<{width}}  {fate.what:<9}  {fate.note}" for fate in self.fates]
        return "\n".join([self.summary(), *lines])
