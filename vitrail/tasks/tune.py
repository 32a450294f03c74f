"""Find the fastest way to run a model on this machine that keeps its accuracy, and write it beside the model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.analyze import canvas
from vitrail.atomic import refuse_unwritable
from vitrail.config import transformer
from vitrail.data.ahead import cores
from vitrail.data.batches import batches
from vitrail.data.sources import open_labelled
from vitrail.errors import UserError
from vitrail.evaluate.metrics import paired_bootstrap
from vitrail.record import to_dict
from vitrail.report.terminal import Show, duration
from vitrail.runtime.engines import available, engine, fingerprint, with_ranges
from vitrail.runtime.machine import processor
from vitrail.runtime.plan import FILE, Runtime, Tuned
from vitrail.runtime.predictor import Engine
from vitrail.runtime.schedules import KINDS, schedule, search
from vitrail.runtime.tuning import Loss, Search, Trial, Tuner, by_turns
from vitrail.tasks.classifier import Classifier, load
from vitrail.tasks.evaluation import trained_on
from vitrail.tasks.running import folder_of, write_tuned

BATCH = 32
MOST = 1000
"""Pictures that accuracy is measured on; more are not read."""
CALIBRATION = 64
"""Of the pictures, those that ranges for int8 are taken from and nothing is measured on."""
REFERENCE = Runtime("eager", "fp32", batch_size=BATCH)
SHARE = 0.2
"""Of the time, what the accuracy of the reference may take: pictures are left out where it would be more."""
TIMED = 15.0
"""Seconds that the reference may take for the pictures that speeds are measured on: fewer than a batch where they are
large."""
BUILDING = 0.35
"""Of the time, after which no more ways are built; the likeliest winners are the first."""
SEARCHING = 0.8
"""Of the time, after which no other schedule of merging is tried."""
LEVELS = 8
"""Steps in which the share of merged patches is searched: finer ones differ by less than speeds can be told apart."""
LIKELY = ("int8", "bf16", "fp32"), ("openvino", "onnx", "eager", "compiled")
"""Precisions and backends, the likeliest to win and the quickest to build first."""


@dataclass(frozen=True)
class Tuning:
    """What was found and where it is."""

    tuned: Tuned
    single: float
    """Pictures a second one by one, as a server meets them."""
    search: Search
    folder: Path
    figure: Path
    minutes: float

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            **to_dict(self.tuned),
            "single": self.single,
            "trials": [to_dict(trial) for trial in self.search.trials],
            "left_out": dict(self.search.left_out),
            "minutes": self.minutes,
        }


def tune(
    model: str | Path,
    data: str | Path,
    max_loss: float = 0.3,
    minutes: float = 10.0,
    merging: bool = True,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Tuning:
    """Measure ways to run a model and write the winner into its folder, which all that run it then take.

    Args:
        model: a run folder or model folder of Vitrail.
        data: labelled pictures that it was not trained on.
        max_loss: points of top-1 accuracy that may be lost against eager fp32, by the estimate on ``data``.
        minutes: after which nothing new is begun.
        merging: whether tokens may be merged.
        out: where the figure goes; None: ``tune.png`` in the model's folder.

    Raises:
        UserError: the model is no folder of ours, knows no classes, or cannot be written to; the pictures are too
            few, or do not fit it.
    """
    if not (max_loss >= 0 and 0 < minutes < float("inf")):
        raise UserError("max_loss must be at least 0 and minutes more than 0.")
    start, show, folder = time.monotonic(), Show(quiet), folder_of(model)
    if folder is None:
        raise UserError(
            f"{model} is no folder of a model of ours: make one with vitrail finetune, or of a model that has a "
            f"classifier with vitrail convert {model} FOLDER --to vitrail."
        )
    figure = Path(out) if out is not None else folder / "tune.png"
    canvas.refuse(figure)
    refuse_unwritable(folder / FILE)
    classifier = load(model, device="cpu", runtime="eager", quiet=quiet)
    speed = reference_speed(classifier)
    work = Work(classifier, folder, read_pictures(classifier, data, show, pictures_for(minutes, speed)), show, speed)
    pairs = sorted(
        available(torch.device("cpu")), key=lambda pair: [LIKELY[0].index(pair[1]), LIKELY[1].index(pair[0])]
    )
    ways = [Runtime(*pair, batch_size=BATCH) for pair in pairs]
    usual = Runtime("eager", "bf16" if ("eager", "bf16") in pairs else "fp32", batch_size=BATCH)
    work.until, work.deadline = start + BUILDING * 60 * minutes, start + 60 * minutes
    show.say(
        f"{len(ways)} ways to run it, {', '.join(way.name for way in ways)}; accuracy on {len(work.labels)} pictures, "
        f"against {REFERENCE.name}; about {minutes:g} minutes."
    )
    tuner = Tuner(work.speeds, work.loss, max_loss, work.deadline)
    best = tuner.plain(ways, REFERENCE, usual)
    work.keep(best.runtime)
    work.until = work.deadline
    if merging and _mergeable(classifier):
        best = tuner.merged(best, _schedules(classifier, work, usual, max_loss, start + SEARCHING * 60 * minutes))
    best = tuner.varied(best, _variants(best.runtime, work.timed))
    found = tuner.found(best)
    assert best.loss is not None
    loss = best.loss
    runtime, about = with_ranges(best.runtime, work.calibration), fingerprint(classifier.model)
    tuned = Tuned(
        runtime, best.speed, loss.accuracy, loss.points, (loss.low, loss.high), len(work.labels), processor(), about
    )
    single = by_turns({best.runtime: lambda: work.engine(best.runtime)(work.images[:1])}, 1)[best.runtime]
    drawn = draw(found)
    path = write_tuned(folder, tuned)
    canvas.save(drawn, figure)
    result = Tuning(tuned, single, found, folder, figure, (time.monotonic() - start) / 60)
    _say(show, result, max_loss, path)
    return result


class Work:
    """Engines, and what they are measured on."""

    def __init__(
        self, classifier: Classifier, folder: Path, pictures: tuple[Tensor, np.ndarray], show: Show, speed: float
    ) -> None:
        images, labels = pictures
        own = min(CALIBRATION, len(images) // 4)
        self.calibration, self.images, self.labels = images[:own], images[own:], labels[own:]
        self.classifier, self.folder, self.show = classifier, folder, show
        self.engines: dict[Runtime, Engine] = {}
        self.reference: np.ndarray | None = None
        self.until = self.deadline = float("inf")
        self.timed = min(BATCH, 1 << max(1, int(TIMED * speed)).bit_length() - 1, len(self.images))
        """Pictures that speeds are measured on; a power of two, for which engines are compiled."""

    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def keep(self, best: Runtime) -> None:
        """Let go of all engines but that one, each of which has weights of its own; what was built is not lost."""
        self.engines = {runtime: made for runtime, made in self.engines.items() if runtime in (best, REFERENCE)}

    def engine(self, runtime: Runtime) -> Engine:
        """Built once, and held against the model."""
        if runtime not in self.engines:
            self.show.say(f"Building {runtime.name}.")
            self.engines[runtime] = engine(self.classifier.model, runtime, self.calibration, self.folder)
        return self.engines[runtime]

    def speeds(self, ways: Sequence[Runtime]) -> Mapping[Runtime, float | str]:
        """Pictures a second."""
        runs: dict[Runtime, Callable[[], object]] = {}
        found: dict[Runtime, float | str] = {}
        for runtime in ways:
            quick = runtime.backend == "eager" or runtime in self.engines
            if time.monotonic() > self.until and not quick:
                found[runtime] = "it was not tried, for the time was over; more --minutes would see it."
                continue
            try:
                made = self.engine(runtime)
            except UserError as error:
                found[runtime] = str(error)
                continue
            batches = torch.split(self.images[: self.timed], runtime.batch_size)
            runs[runtime] = lambda made=made, batches=batches: [made(batch) for batch in batches]  # type: ignore[misc]
        return {**found, **by_turns(runs, self.timed, late=self.late)}

    def loss(self, runtime: Runtime) -> Loss:
        """Against the reference, on the same pictures."""
        if self.reference is None:
            self.reference = self.right(REFERENCE)
        own = self.reference if runtime == REFERENCE else self.right(runtime)
        lost, low, high = (100 * value for value in paired_bootstrap(self.reference, own))
        return Loss(float(own.mean()), lost, low, high)

    def right(self, runtime: Runtime) -> np.ndarray:
        """(n,): whether each picture is classified correctly."""
        made, model = self.engine(runtime), self.classifier.model
        rows = []
        with self.show.progress(f"Judging {runtime.name}") as advance, torch.inference_mode():
            for first in range(0, len(self.images), BATCH):
                rows.append(model.classify(made(self.images[first : first + BATCH])).argmax(dim=-1))
                advance(min(first + BATCH, len(self.images)), len(self.images))
        right: np.ndarray = torch.cat(rows).numpy() == self.labels
        return right


def reference_speed(classifier: Classifier) -> float:
    """Pictures a second of the reference, from a few that are noise."""
    config = classifier.card.architecture
    images = torch.rand(8, config.channels, *config.image_size)
    made = engine(classifier.model, REFERENCE)
    made(images[:1])
    start = time.perf_counter()
    made(images)
    return len(images) / (time.perf_counter() - start)


def pictures_for(minutes: float, speed: float) -> int:
    """How many pictures to take, for ranges and to judge, where the reference runs ``speed`` of them a second."""
    return CALIBRATION + max(int(SHARE * minutes * 60 * speed), 50)


def read_pictures(classifier: Classifier, data: str | Path, show: Show, most: int = MOST) -> tuple[Tensor, np.ndarray]:
    """At most ``most`` labelled pictures, and ``MOST``, by chance: images (n, C, H, W) and labels (n,)."""
    samples = list(open_labelled(data, classifier.classes()))
    random.Random(0).shuffle(samples)
    samples = samples[: min(most, MOST)]
    trained_on(samples, Path(classifier.report.source), show)
    config = classifier.card.architecture
    images = torch.empty(len(samples), config.channels, *config.image_size)
    labels: list[int] = []
    with show.progress("Reading") as advance:
        for batch in batches([sample.path for sample in samples], classifier.card.preprocessing, BATCH):
            images[len(labels) : len(labels) + len(batch.images)] = batch.images
            labels += [samples[position].label for position in batch.index]
            advance(batch.start + len(batch.paths), len(samples))
    if len(labels) < 20:
        raise UserError(f"{data} has {len(labels)} pictures that can be read, too few to tell ways of running apart.")
    return images[: len(labels)], np.array(labels)


def _schedules(
    classifier: Classifier, work: Work, way: Runtime, allowed: float, deadline: float
) -> list[list[tuple[int, ...]]]:
    """Schedules of merging that lose at most what is allowed when the model is run in ``way``.

    By family, cheapest first. That way needs no building: an engine for each schedule that is tried would take longer
    than all else.
    """

    def lost(merging: tuple[int, ...]) -> float:
        return work.loss(replace(way, merging=merging)).points if time.monotonic() < deadline else float("inf")

    # Late first: it loses least for what it merges, so the others are soon given up.
    kinds = sorted(KINDS, key=lambda kind: kind != "late")
    tried = search(transformer(classifier.card.architecture, "Merging"), lost, allowed, kinds, LEVELS).tried
    fit = sorted((trial for trial in tried if trial.loss <= allowed), key=lambda trial: trial.flops)
    return [[trial.merging for trial in fit if trial.kind == kind] for kind in kinds]


def _mergeable(classifier: Classifier) -> bool:
    try:
        half = schedule(transformer(classifier.card.architecture, "Merging"), 0.5)
        engine(classifier.model, replace(REFERENCE, merging=half))
    except UserError:
        return False
    return True


def _variants(best: Runtime, timed: int) -> list[Runtime]:
    """The same answers in smaller batches and with fewer threads, half of the cores and a quarter."""
    # By onnx:int8 a picture's answer depends on those beside it.
    sizes = [] if (best.backend, best.precision) == ("onnx", "int8") else [size for size in (8, 16) if size < timed]
    fewer = [count for count in (cores() // 2, cores() // 4) if count]
    return [replace(best, batch_size=size) for size in sizes] + [replace(best, threads=count) for count in fewer]


def _say(show: Show, result: Tuning, max_loss: float, path: Path) -> None:
    tuned = result.tuned
    rows = []
    for trial in result.search.trials:
        loss = trial.loss
        lost = "" if loss is None else f"{loss.points:+.1f} ({loss.low:+.1f} to {loss.high:+.1f})"
        accuracy = "not asked" if loss is None else f"{100 * loss.accuracy:.1f} %"
        rows.append([_unbatched(trial.runtime), str(trial.runtime.batch_size), f"{trial.speed:.1f}", accuracy, lost])
    show.table(["way", "batch", "pictures/s", "accuracy", "points lost (95 %)"], rows)
    for name, why in result.search.left_out.items():
        show.say(f"Left out: {name}: {why}")
    low, high = tuned.interval
    show.say(
        f"The fastest is {_unbatched(tuned.runtime)} in batches of {tuned.runtime.batch_size}: "
        f"{tuned.images_per_second:.1f} pictures a second, {result.single:.1f} one by one; it loses "
        f"{tuned.loss:+.1f} points ({low:+.1f} to {high:+.1f}) on {tuned.images} pictures, {max_loss:g} being allowed."
    )
    if high > max_loss:
        show.say(f"So few pictures cannot rule out a loss of {high:.1f}: with more, the interval narrows.")
    show.facts([("written", f"{path}; predict, evaluate, embed and serve now take it"), ("figure", str(result.figure))])
    show.facts([("time", duration(60 * result.minutes))])


def _unbatched(runtime: Runtime) -> str:
    """Its name where its batches are told beside."""
    return replace(runtime, batch_size=Runtime.batch_size).name


@canvas.styled
def draw(found: Search) -> Any:
    """Accuracy against speed, with the front; below, the speeds of ways that were too slow to be judged."""
    drawn, axes = canvas.figure(1, 1, size=(6.6, 3.8))
    best = found.best.runtime
    known = [trial for trial in found.trials if trial.loss is not None and not _variant_of(trial.runtime, best)]
    middle = max((trial.speed for trial in found.trials), default=0.0) / 2
    for trial in known:
        _point(axes[0], trial, trial.runtime == best, left=trial.speed > middle)
    front = sorted((one for one in found.front() if one in known), key=lambda one: one.speed)
    axes[0].plot([one.speed for one in front], [_percent(one) for one in front], color=canvas.BLUE, lw=1, zorder=1)
    for speed, names in _unjudged(found, middle / 30).items():
        axes[0].annotate("|", (speed, 0.0), xycoords=axes[0].get_xaxis_transform(), ha="center", color=canvas.SOFT)
        axes[0].annotate(
            names, (speed, 0.0), (0, 12), xycoords=axes[0].get_xaxis_transform(), textcoords="offset points",
            rotation=90, fontsize=6, ha="center", color=canvas.SOFT,
        )  # fmt: skip
    axes[0].set(title="Ways to run it", xlabel="pictures a second", ylabel="accuracy, %")
    axes[0].margins(x=0.1, y=0.35)
    axes[0].set_xlim(left=0.0)
    return drawn


def _unjudged(found: Search, near: float) -> dict[float, str]:
    """Speed -> the ways of about that speed whose accuracy nobody asked for."""
    rows: dict[float, str] = {}
    for trial in sorted(found.trials, key=lambda one: one.speed):
        if trial.loss is None:
            last = next(reversed(rows), None)
            if last is not None and trial.speed - last < near:
                rows[last] += f", {trial.runtime.name}"
            else:
                rows[trial.speed] = trial.runtime.name
    return rows


def _variant_of(runtime: Runtime, best: Runtime) -> bool:
    """Whether it is the best in other batches or threads, which gives the same answers."""
    return runtime != best and replace(runtime, batch_size=best.batch_size, threads=best.threads) == best


def _point(axes: Any, trial: Trial, best: bool, left: bool) -> None:
    assert trial.loss is not None
    colour = canvas.RUBY if best else canvas.BLUE
    reach = [[max(0.0, trial.loss.high - trial.loss.points)], [max(0.0, trial.loss.points - trial.loss.low)]]
    axes.errorbar([trial.speed], [_percent(trial)], reach, fmt="o", color=colour, ms=5, capsize=2)
    axes.annotate(
        trial.runtime.name,
        (trial.speed, _percent(trial) + reach[1][0]),  # beside the bar it would meet another's
        (-5 if left else 5, 5),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=7,
        color=colour,
    )


def _percent(trial: Trial) -> float:
    assert trial.loss is not None
    return 100 * trial.loss.accuracy
