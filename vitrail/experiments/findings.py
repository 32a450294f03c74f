"""What an experiment found, as a section of a page: claim, margins, table, figure, verdicts, and how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.experiments.run import Result
from vitrail.experiments.verdict import Word
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
    others: Sequence[Result] = ()
    """Made for these: to search settings, and to start from."""

    @property
    def cost(self) -> str:
        """Runs, what they begin as, seeds, minutes and where."""
        minutes = _minutes(self.results)
        seeds = len({result.run["seed"] for result in self.results})
        started = sum(result.run.get("start") is not None for result in self.results)
        begun = f"{started} of them from another run's weights" if started else "all from random weights"
        more = ""
        if self.others:
            many = "1 run" if len(self.others) == 1 else f"{len(self.others)} runs"
            more = f", besides {many} of {_minutes(self.others):.0f} minutes to search settings and to start from"
        where = ", ".join(sorted({result.processor or "others not noted" for result in self.results}))
        return f"{len(self.results)} runs, {begun}, {seeds} seeds, {minutes:.0f} minutes of training{more} ({where})"

    def markdown(self, figure: str) -> str:
        """The section; ``figure`` is the picture's address."""
        lines = [f"## {self.title}", "", f"*{self.source}* {self.margins}", ""]
        lines += [table(self.header, self.rows), ""]
        lines += [f"![{self.title}]({figure})", ""]
        lines += [f"- {verdict.claim}: **{verdict.word}** ({verdict.numbers})." for verdict in self.verdicts]
        lines += ["", f"`{self.command}`: {self.cost}."]
        return "\n".join(lines)


def _minutes(results: Iterable[Result]) -> float:
    return sum(result.minutes for result in {str(result.run): result for result in results}.values())


def accuracies(results: Mapping[str, Sequence[Result]]) -> dict[str, list[float]]:
    """On the test pictures, for each label, a seed after the other."""
    return {label: [result.accuracy for result in own] for label, own in results.items()}
