"""Where an experiment's runs are made: each once, its result a small file, its weights a run folder that may go.

Several processes, on several machines where the folder is shared, may work on one: whoever makes a run holds its
claim, a lock that the system lets go of when the process ends, and the others make other runs, or wait.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from vitrail.atomic import new_file
from vitrail.cost import flops, parameters
from vitrail.data.ahead import cores, end_with_parent
from vitrail.data.held import forget, remember
from vitrail.data.sources import open_dataset, open_labelled
from vitrail.errors import UserError
from vitrail.experiments.run import Result, Run, hidden, order, packed, set_aside, test_folder, write_table
from vitrail.record import from_dict, to_dict
from vitrail.report.terminal import Show, duration
from vitrail.runtime.machine import processor
from vitrail.runtime.memory import keep_memory
from vitrail.tasks.classifier import Classifier, load
from vitrail.tasks.fitting import classify
from vitrail.tasks.noisy_student import PseudoLabels, label
from vitrail.tasks.pretrain import pretrain
from vitrail.train.lock import Busy, locked
from vitrail.train.loop import Diverged

CELLS, RUNS, SPLITS = "cells", "runs", "splits"
DIVERGED = "diverged"
Label = TypeVar("Label", bound=Hashable)
POINTS = 100
"""Of a loss curve that is kept."""
WIDER = 3
"""Rates beyond those that are searched among, at most."""
STILL = 100
"""Times the median step, beyond which a process was not at work."""
POLL = 1.0
"""Seconds between two looks at what others are making."""


@dataclass(frozen=True)
class Lab:
    """A folder of results, and the pictures they come from."""

    folder: Path
    """Holds ``cells/`` (a result a run), ``splits/`` (lists of pictures) and ``runs/`` (weights, logs, checkpoints)."""
    data: Path
    """Holds the folders that runs name."""
    show: Show
    processes: int = 1
    """Runs made at a time; each takes its share of the processors."""
    asked: dict[str, Result] = field(default_factory=dict, compare=False)
    """All results that were asked for, by key: those that settings were searched by and that others start from too."""
    notes: list[str] = field(default_factory=list, compare=False)
    """What a reader of the results should know besides."""

    def result(self, run: Run) -> Result:
        """``results`` of one."""
        return self.results([run])[0]

    def results(self, runs: Sequence[Run]) -> list[Result]:
        """The results, from files where they are there, made where not: first what others start from.

        Raises:
            UserError: a run cannot be made.
        """
        missing = {run.key: run for run in runs if not self._cell(run).is_file()}
        before = [one for run in runs for one in (run.start, run.teacher) if one is not None]
        wanted = {one.key for run in missing.values() for one in (run.start, run.teacher) if one is not None}
        if before := [one for one in before if one.key in wanted or self._cell(one).is_file()]:
            self.results(before)
        if missing:
            self._make(list(missing.values()))
        found = [_result(self._cell(run)) for run in runs]
        self.asked.update(zip((run.key for run in runs), found, strict=True))
        return found

    def table(self, runs: Mapping[Label, Sequence[Run]]) -> dict[Label, list[Result]]:
        """The results of several runs for each label, in one go."""
        found = iter(self.results([run for own in runs.values() for run in own]))
        return {label: [next(found) for _ in own] for label, own in runs.items()}

    def searched(self, run: Run, rates: Sequence[float]) -> Run:
        """``searches`` of one."""
        return self.searches({"": run}, rates)[""]

    def searches(self, runs: Mapping[Label, Run], rates: Sequence[float]) -> dict[Label, Run]:
        """Each run with the learning rate that does best on the pictures that settings are searched by, in one go.

        Of three rates or more, the next one is tried too while the best is the lowest or the highest, ``WIDER`` times
        at most.
        """
        tried = {label: sorted(rates) for label in runs}
        for further in reversed(range(WIDER + 1)):
            ways = {label: [run.but(learning_rate=rate) for rate in tried[label]] for label, run in runs.items()}
            best = {label: int(np.argmax(scores)) for label, scores in self._scores(ways).items()}
            wider = {label: _wider(own, best[label]) for label, own in tried.items()} if len(rates) > 2 else tried
            if not further or wider == tried:
                break
            tried = wider
        found = {label: own[best[label]] for label, own in ways.items()}
        for name, one in found.items():
            if len(rates) > 2 and best[name] in (0, len(tried[name]) - 1):
                self.note(
                    f"Of the learning rates {', '.join(f'{rate:g}' for rate in tried[name])} that were tried"
                    f"{f' for {name}' if name else ''}, {one.settings['learning_rate']:g} did best, at their end: a "
                    "better one may lie beyond."
                )
        return found

    def note(self, sentence: str) -> None:
        """Say it, and have it stand on the page."""
        self.show.warn(sentence)
        self.notes.append(sentence)

    def _scores(self, runs: Mapping[Label, Sequence[Run]]) -> dict[Label, list[float]]:
        """Accuracies on the pictures that settings are searched by; 0 of a run that diverges."""
        with suppress(Diverged):
            return {label: [result.search_accuracy or 0.0 for result in own] for label, own in self.table(runs).items()}
        return {label: [self._score(run) for run in own] for label, own in runs.items()}

    def _score(self, run: Run) -> float:
        try:
            return self.result(run).search_accuracy or 0.0
        except Diverged as error:
            self.show.say(f"{run.key} at {run.settings['learning_rate']:g} is left out of the search: {error}")
            return 0.0

    def measured(self, run: Run, what: str, measure: Callable[[Classifier], Mapping[str, float]]) -> dict[str, float]:
        """Numbers that are measured on a run's model, once; a file beside its cell.

        Raises:
            UserError: the run cannot be made, or the file is damaged.
        """
        path = self.folder / CELLS / f"{run.key}-{what}.json"
        if not path.is_file():
            self.show.say(f"Measuring {what} of {run.key}.")
            numbers = dict(measure(load(_weights_of(run, self.folder, self.data), quiet=True)))
            with new_file(path) as beside:
                beside.write_text(json.dumps(numbers) + "\n", encoding="utf-8")
        return read(path)

    def per_class(self, data: str) -> int:
        """How many pictures there are to learn from in the smallest class."""
        return min(len(paths) - set_aside(paths) for paths in self._order(data).values())

    def need(self, data: str, count: int) -> None:
        """Raise UserError when a class has fewer pictures to learn from than ``count``, before anything is trained."""
        for name, paths in self._order(data).items():
            if (there := len(paths) - set_aside(paths)) < count:
                raise UserError(
                    f"{self.data / data} has {there} pictures of {name} to learn from, and this experiment takes "
                    f"{count} of each class: bring more."
                )

    def classes(self, data: str) -> int:
        """How many classes there are."""
        return len(self._order(data))

    def _order(self, data: str) -> dict[str, list[str]]:
        return order(self.data / data, self.folder / SPLITS / f"{data}.csv")

    def _cell(self, run: Run) -> Path:
        return self.folder / CELLS / f"{run.key}.json"

    def _make(self, runs: Sequence[Run]) -> None:
        left, start, made = list(runs), time.perf_counter(), 0
        many = "1 run" if len(runs) == 1 else f"{len(runs)} runs, {self.processes} at a time"
        self.show.say(f"To be made: {many}. What is done is kept: stopped, the same command goes on.")
        while left:
            for run, seconds in self._each(left):
                left.remove(run)
                took = "is there" if seconds is None else f"took {duration(seconds)}"
                made += seconds is not None
                ahead = ""
                if made and left:
                    ahead = f" About {duration((time.perf_counter() - start) / made * len(left))} for the others."
                self.show.say(f"{len(runs) - len(left)} of {len(runs)}: {run.key} {took}.{ahead}")
            if left:
                self.show.say(f"Waiting for {len(left)} that others are making.")
                time.sleep(POLL)
                while all(map(self._busy, left)):
                    time.sleep(POLL)

    def _busy(self, run: Run) -> bool:
        """Whether another process is making it."""
        try:
            with locked(_claim(run, self.folder)):
                return False
        except Busy:
            return True

    def _each(self, runs: Sequence[Run]) -> Iterable[tuple[Run, float | None]]:
        """Those that are made, and in how many seconds if made here; not those that another process is making."""
        jobs = [(run, self.folder, self.data) for run in runs]
        if self.processes == 1 or len(runs) == 1:
            remember()
            try:
                for job in jobs:
                    with suppress(Busy):
                        yield job[0], make(*job)
            finally:
                forget()
            return
        threads = max(1, cores() // self.processes)
        context = multiprocessing.get_context("spawn")
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(self.processes, context, _begin, (threads,)) as pool:
            waiting = {pool.submit(make, *job): job[0] for job in jobs}
            try:
                for future in as_completed(waiting):
                    with suppress(Busy):
                        yield waiting[future], future.result()
            except BaseException:  # what a run has done is kept in its checkpoints: nobody waits for the rest
                pool.shutdown(wait=False, cancel_futures=True)
                for child in set(multiprocessing.active_children()) - others:
                    child.terminate()
                raise


def _wider(rates: Sequence[float], best: int) -> list[float]:
    """With the next one, as far from the last as that is from the one before the last but one, if that was the best."""
    if best == 0:
        return [float(f"{rates[0] * rates[1] / rates[2]:.3g}"), *rates]
    if best == len(rates) - 1:
        return [*rates, float(f"{rates[-1] * rates[-2] / rates[-3]:.3g}")]
    return list(rates)


def _begin(threads: int) -> None:
    """In a new process: its share of the processors, and pictures are read once for all its runs."""
    end_with_parent()
    keep_memory()
    torch.set_num_threads(threads)
    on_own_accelerator()
    remember()


def on_own_accelerator() -> None:
    """Of several processes that torchrun started on a machine, each takes the accelerator of its number."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _claim(run: Run, folder: Path) -> Path:
    return folder / RUNS / f"{run.key}.claim"


def _weights_of(run: Run, folder: Path, data: Path) -> Path:
    """``trained_folder`` of a run that another process may be training: then when it has."""
    while True:
        with suppress(Busy), locked(_claim(run, folder)):
            return trained_folder(run, folder, data)
        time.sleep(POLL)


def make(run: Run, folder: Path, data: Path) -> float | None:
    """Train, judge, and write the cell; a run that was stopped is gone on with.

    Returns:
        Seconds; None if it was there.

    Raises:
        Busy: another process is making it.
        Diverged: its loss is no number; its cell says so, and it is not made again.
        UserError: the pictures are not there, or training fails.
    """
    cell = folder / CELLS / f"{run.key}.json"
    with locked(_claim(run, folder)):
        if cell.is_file():
            return None
        try:
            return _made(run, folder, data)
        except Diverged as error:
            with new_file(cell) as beside:
                beside.write_text(json.dumps({"run": to_dict(run), DIVERGED: str(error)}) + "\n", encoding="utf-8")
            raise _diverged(cell, str(error)) from None


def _made(run: Run, folder: Path, data: Path) -> float:
    start = time.perf_counter()
    trained = trained_folder(run, folder, data)
    curve = _curve(trained)
    loaded = load(trained, quiet=True)
    config = loaded.card.architecture
    judged: dict[str, Any] = {}
    if run.photos.labels:
        held = [json.loads(line) for line in (trained / "training" / "metrics.jsonl").read_text().splitlines()]
        root = data / run.photos.data
        samples = sorted(open_labelled(test_folder(root), loaded.classes()), key=lambda sample: sample.path.as_posix())
        logits = classify(loaded.predictor, loaded.card.preprocessing, samples, 256)
        right = logits.argmax(axis=1) == np.array([sample.label for sample in samples])
        judged = {
            "search_accuracy": [line["score"] for line in held if "score" in line][-1],
            "test_accuracy": float(right.mean()),
            "test_images": len(samples),
            "correct": packed(right),
        }
    result = Result(
        run=to_dict(run),
        minutes=_minutes(trained),
        loss=curve[-1][1],
        parameters=parameters(config),
        flops=float(flops(config)),
        tokens=config.sequence,
        seen=int(curve[-1][0]) * int(run.settings["batch_size"]),
        curve=curve,
        processor=torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        **judged,
    )
    with new_file(folder / CELLS / f"{run.key}.json") as beside:
        beside.write_text(json.dumps(to_dict(result)) + "\n", encoding="utf-8")
    return time.perf_counter() - start


def trained_folder(run: Run, folder: Path, data: Path) -> Path:
    """The run folder with its model, trained again if it is gone."""
    out = folder / RUNS / run.key
    if (out / "model").is_dir():
        return out
    if "batch_size" not in run.settings or "steps" not in run.settings:
        raise UserError("A run of an experiment says its steps and its batch_size.")
    weights = None if run.start is None else _weights_of(run.start, folder, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = folder / RUNS / f"{run.key}.csv"
    root = (data / run.photos.data).absolute()
    split = folder / SPLITS / f"{run.photos.data}.csv"
    write_table(run.photos, root, split, table)
    if run.teacher is not None:
        labelled, table = open_dataset(table, 0.0, 0), table.with_suffix(".pseudo.csv")
        if not table.is_file():  # a run that goes on finds the labels it began with
            teacher = load(_weights_of(run.teacher, folder, data), quiet=True)
            others = hidden(run.photos, root, split)
            label(teacher, labelled, others, table, PseudoLabels(), run.seed, Show(quiet=True))
    pretrain(table, out, weights=weights, seed=run.seed, quiet=True, **run.settings)
    return out


def _curve(trained: Path) -> list[list[float]]:
    """Steps and mean losses, ``POINTS`` of them at most."""
    lines = [json.loads(line) for line in (trained / "training" / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    every = -(-len(losses) // POINTS)
    pieces = [losses[at : at + every] for at in range(0, len(losses), every)]
    return [[float(piece[-1][0]), statistics.mean(loss for _, loss in piece)] for piece in pieces]


def _minutes(trained: Path) -> float:
    """Of its training steps; one in which the machine slept, or that waited for the compiler, counts as the others."""
    lines = (trained / "training" / "timing.jsonl").read_text().splitlines()
    seconds = [float(line["seconds"]) for line in map(json.loads, lines) if "seconds" in line]
    usual = statistics.median(seconds)
    return sum(usual if one > STILL * usual else one for one in seconds) / 60


def _result(path: Path) -> Result:
    found = read(path)
    if isinstance(found, dict) and DIVERGED in found:
        raise _diverged(path, found[DIVERGED])
    try:
        return from_dict(Result, found, "it")
    except UserError as error:
        raise UserError(f"{path} is damaged ({str(error).rstrip('.')}): remove it, and it is made again.") from None


def _diverged(cell: Path, cause: str) -> Diverged:
    return Diverged(f"{cause} {cell} says so from now on: remove it to try again.")


def read(path: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        UserError: it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and it is made again.") from None
    return found
