"""What a person sees in a terminal: the plan and the progress on standard error, results wherever asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # it brings scipy, which takes a second to import and whoever shows progress does without
    from vitrail.evaluate.metrics import Evaluation

MOST_ROWS = 25
"""Classes a table lists before it says how many more there are."""

SUREST = 0.8
"""Share of the pictures, the surest, whose accuracy is shown beside that of all."""

Advance = Callable[[int, int | None], None]
"""Called with how much is done and how much there is, if that is known."""


class RateColumn(ProgressColumn):
    """Units a second, as ``12.3 img/s``."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s", style="progress.data.speed")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read has gone, as ``2>&1 | tee log`` does at Ctrl-C.

        Who asked for results on standard output wants no more. What is told beside the work is no reason to end it:
        from here on nobody hears it, nor what others say there.
        """
        if not self.stderr:
            super().on_broken_pipe()  # which ends it
        self.quiet = True
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


class Show:
    """Sentences, tables and progress bars; ``quiet`` shows none, ``out`` puts them on standard output."""

    def __init__(self, quiet: bool = False, out: bool = False) -> None:
        self.console = _Console(stderr=not out, quiet=quiet, highlight=False)

    def say(self, sentence: str = "") -> None:
        """One line of plain text."""
        self.console.print(sentence, markup=False, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """One line that needs attention."""
        self.console.print(Text(sentence, style="yellow"), soft_wrap=True)

    def facts(self, rows: list[tuple[str, str]]) -> None:
        """A list of names and values, aligned."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, Text(value))
        self.console.print(table)

    def table(self, header: list[str], rows: list[list[str]], words: int = 1) -> None:
        """A table whose first columns, ``words`` of them, are text and whose others are numbers."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for position, name in enumerate(header):
            whole = words > 1 and position == 0  # what the rows are called by, to be copied
            table.add_column(name, justify="left" if position < words else "right", overflow="fold", no_wrap=whole)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    @contextmanager
    def progress(self, what: str, unit: str = "img") -> Iterator[Advance]:
        """A bar with rate and time remaining; yields what to call as work gets done."""
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
        if unit == "bytes":
            columns += [DownloadColumn(), TransferSpeedColumn()]
        else:
            columns += [MofNCompleteColumn(), RateColumn(unit)]
        columns += [TextColumn("ETA"), TimeRemainingColumn()]
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def training(self, steps: int, done: int = 0) -> Iterator[Callable[[int, float, float | None, float], None]]:
        """A bar for training; yields what to call with steps done, loss, accuracy if there is one, and images a second.

        Args:
            done: steps that were made another time.
        """
        columns = (TextColumn("Training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
        with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console) as bar:
            task = bar.add_task("", total=steps, completed=done, numbers="")

            def advance(done: int, loss: float, accuracy: float | None, rate: float) -> None:
                right = "" if accuracy is None else f"accuracy {accuracy:.1%}  "
                bar.update(task, completed=done, numbers=f"loss {loss:.3f}  {right}{rate:.1f} img/s")

            yield advance


def duration(seconds: float) -> str:
    """``45 s``, ``3.5 min`` or ``2.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def percent(fraction: float) -> str:
    """``91.2 %``."""
    return f"{100 * fraction:.1f} %"


def interval(bounds: tuple[float, float]) -> str:
    """``89.3 % to 92.8 %``."""
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def show_evaluation(
    show: Show, evaluation: Evaluation, unreadable: Sequence[tuple[Path, str]], images_per_second: float | None
) -> None:
    """Accuracy with its interval, per class, calibration and speed."""
    rows = [
        [entry.name, f"{entry.correct} of {entry.total}", percent(entry.accuracy), interval(entry.interval)]
        for entry in evaluation.per_class
        if entry.accuracy is not None
    ]
    more = [[f"... {len(rows) - MOST_ROWS} more classes"]] if len(rows) > MOST_ROWS else []
    show.table(["class", "right", "accuracy", "95 % interval"], rows[:MOST_ROWS] + more)
    facts = [
        (
            "accuracy",
            f"{percent(evaluation.top1)} of {evaluation.images} (95 % interval {interval(evaluation.interval)})",
        ),
        ("calibration error", percent(evaluation.calibration_error)),
    ]
    surest = min(evaluation.abstention, key=lambda row: abs(row.coverage - SUREST))
    if surest.coverage < 1:
        facts.append(
            (
                "when sure",
                f"{percent(surest.accuracy)} of the {percent(surest.coverage)} of the pictures whose "
                f"confidence is {percent(surest.threshold)} or more",
            )
        )
    if len(evaluation.per_class) > 5:
        facts.insert(1, ("in the top 5", percent(evaluation.top5)))
    if images_per_second is not None:
        facts.append(("speed", f"{images_per_second:.1f} images a second"))
    show.facts(facts)
    if evaluation.interval[0] <= evaluation.commonest:
        show.warn(
            f"That cannot be told from always answering the commonest class ({percent(evaluation.commonest)}): the "
            "labels may be mixed up, the pictures too few, or the model has not learned yet."
        )
    for path, reason in unreadable:
        show.warn(f"{path}: not read: {reason}")
