"""What an experiment found, as a section of a page: claim, margins, table, figure, verdicts, and how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.evaluate.metrics import wilson
from vitrail.experiments.run import Result
from vitrail.experiments.verdict import Word, over_pictures
from vitrail.report.markdown import table


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs say of it."""

    claim: str
    word: Word
    numbers: str


@dataclass(frozen=True)
class Findings:
    """All that is said of an experiment."""

    name: str
    title: str
    source: str
    """Where the claim stands."""
    margins: str
    """What was written down before the runs: what is compared, and what counts as a difference."""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[Verdict]
    draw: Callable[[], Any]
    """A matplotlib figure."""
    command: str
    results: Sequence[Result]
    pairs: Mapping[str, tuple[Sequence[Result], Sequence[Result]]] = field(default_factory=dict)
    """What is compared, in words, and the runs of both sides, which share their seeds."""
    others: Sequence[Result] = ()
    """Made for these: to search settings, and to start from."""
    notes: Sequence[str] = ()
    """What a reader of the results should know besides."""

    @property
    def cost(self) -> str:
        """Runs, what they begin as, seeds, minutes and where."""
        minutes = _minutes(self.results)
        seeds = len({result.run["seed"] for result in self.results})
        started = sum(result.run.get("start") is not None for result in self.results)
        begun = "all from random weights"
        if started:
            begun = f"{'all' if started == len(self.results) else f'{started} of them'} from another run's weights"
        more = ""
        if self.others:
            many = "1 run" if len(self.others) == 1 else f"{len(self.others)} runs"
            more = f", besides {many} of {_minutes(self.others):.0f} minutes to search settings and to start from"
        noted = {result.processor for result in self.results}
        unknown = "others not noted" if noted - {""} else "on a processor that was not noted"
        where = ", ".join(sorted(name or unknown for name in noted))
        return f"{len(self.results)} runs, {begun}, {seeds} seeds, {minutes:.0f} minutes of training{more} ({where})"

    @property
    def pictures(self) -> str:
        """The same differences over pictures, the seeds held fixed; empty where nothing is compared by accuracy."""
        if not self.pairs:
            return ""
        said = "; ".join(f"{what} {over_pictures(*runs).points()}" for what, runs in self.pairs.items())
        counted = {str(one.run): one for pair in self.pairs.values() for own in pair for one in own}.values()
        reach = max(np.ptp(wilson(int(one.right.sum()), one.test_images)) / 2 for one in counted)
        return (
            f"Over pictures instead of seeds (95 %, paired bootstrap of the mean over seeds): {said}. Wilson's "
            f"interval of a single run's accuracy reaches {100 * reach:.1f} points to either side."
        )

    def markdown(self, figure: str) -> str:
        """The section; ``figure`` is the picture's address."""
        lines = [f"## {self.title}", "", f"*{self.source}* {self.margins}", ""]
        lines += [table(self.header, self.rows), ""]
        lines += [f"![{self.title}]({figure})", ""]
        lines += [f"- {verdict.claim}: **{verdict.word}** ({verdict.numbers})." for verdict in self.verdicts]
        lines += [f"- Note: {note}" for note in self.notes]
        lines += ["", self.pictures] if self.pairs else []
        lines += ["", f"`{self.command}`: {self.cost}."]
        return "\n".join(lines)


def _minutes(results: Iterable[Result]) -> float:
    return sum(result.minutes for result in {str(result.run): result for result in results}.values())


def accuracies(results: Mapping[str, Sequence[Result]]) -> dict[str, list[float]]:
    """On the test pictures, for each label, a seed after the other."""
    return {label: [result.accuracy for result in own] for label, own in results.items()}
