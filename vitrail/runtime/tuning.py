"""Which way to run a model is the fastest that keeps enough of its accuracy: the search, over what is measured.

Speeds are asked for of every way, losses only of those that could win: from the fastest down, until one loses little
enough. How many tokens it may merge besides, ``schedules.search`` finds.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vitrail.errors import UserError
from vitrail.runtime.plan import Runtime

Name = TypeVar("Name")
Way = TypeVar("Way")

TIE = 1.1
"""Times as fast that is no difference."""
NEAR = 1.5
"""Times as fast as another that it may turn out slower than when both are looked at again."""
TURNS, MOST, SECONDS = 3, 12, 15.0
"""How often ways take turns: at least, and at most where that is done in so many seconds."""
FAR, SHORT = 3.0, 0.5
"""Times as long as the quickest, after which a way takes no other turn, since it cannot win; turns of fewer seconds are
taken by all."""


@dataclass(frozen=True)
class Loss:
    """What a way of running costs, on the same pictures as eager fp32."""

    accuracy: float
    points: float
    """Of top-1 accuracy lost; negative: gained."""
    low: float
    high: float
    """Its 95 % interval, by a paired bootstrap."""


@dataclass(frozen=True)
class Trial:
    """One way of running, and what is known of it."""

    runtime: Runtime
    speed: float
    """Pictures a second."""
    loss: Loss | None = None
    """None: slower than one that loses little enough, so nobody asked."""


@dataclass(frozen=True)
class Search:
    """What a search found."""

    best: Trial
    trials: tuple[Trial, ...]
    """All that was measured, fastest first."""
    left_out: Mapping[str, str]
    """Ways that could not be had, or not in time, and why."""

    def front(self) -> list[Trial]:
        """Of those whose loss is known, the ones that none other beats in both speed and accuracy; fastest first."""
        known = [trial for trial in self.trials if trial.loss is not None]
        return [
            one
            for one in known
            if not any(
                other.speed >= one.speed and _accuracy(other) >= _accuracy(one) and other is not one
                and (other.speed, _accuracy(other)) != (one.speed, _accuracy(one))
                for other in known
            )
        ]  # fmt: skip


def _accuracy(trial: Trial) -> float:
    assert trial.loss is not None
    return trial.loss.accuracy


@dataclass
class Tuner:
    """Measures and decides.

    Args:
        speeds: ways of running -> pictures a second of each, or why it cannot be had.
        loss: of a way of running.
        allowed: points of accuracy that may be lost, by the estimate.
        deadline: of ``time.monotonic``, after which nothing new is begun.
    """

    speeds: Callable[[Sequence[Runtime]], Mapping[Runtime, float | str]]
    loss: Callable[[Runtime], Loss]
    allowed: float
    deadline: float = float("inf")

    def __post_init__(self) -> None:
        self.trials: dict[Runtime, Trial] = {}
        self.left_out: dict[str, str] = {}

    def plain(self, ways: Iterable[Runtime], reference: Runtime, usual: Runtime) -> Trial:
        """The fastest of ``ways`` that loses at most what is allowed; ``reference`` loses nothing.

        Where there is no time to judge them it is ``usual``, how the model is run untuned, judged in any case.

        Raises:
            UserError: none can be had, not even the reference.
        """
        self._time([*dict.fromkeys([reference, usual, *ways])])
        if reference not in self.trials:
            raise UserError(f"The model cannot be run here: {self.left_out.get(reference.name, 'no time was left')}")
        fastest = sorted(self.trials, key=lambda one: -self.trials[one].speed)
        near = [one for one in fastest if NEAR * self.trials[one].speed > self.trials[fastest[0]].speed]
        if len(near) > 1 and not self.late():
            self._time(near)
        self.judge(reference, anyway=True)  # what the others are held against has to be known in any case
        for runtime in sorted(self.trials, key=lambda one: -self.trials[one].speed):
            trial = self.judge(runtime, anyway=runtime == usual)
            if trial is not None and trial.loss is not None and trial.loss.points <= self.allowed:
                return trial
        raise AssertionError("the reference loses nothing")

    def merged(self, best: Trial, families: Iterable[Iterable[tuple[int, ...]]]) -> Trial:
        """The best so far, or of each of the ``families`` of schedules the first that loses little enough: the fastest.

        Within a family the first is the fastest; which of two families is faster, their operations do not say.
        """
        fit = [best.runtime]
        for family in families:
            for merging in family:
                if self.late():
                    break
                runtime = replace(best.runtime, merging=merging)
                self._time([best.runtime, runtime])
                trial = self.judge(runtime)
                # None: it could not be had, or not in time
                if trial is not None and trial.loss is not None and trial.loss.points <= self.allowed:
                    fit.append(runtime)
                    break
        if len(fit) > 2:
            self._time(fit)  # beside each other
        return max((self.trials[runtime] for runtime in fit), key=lambda one: one.speed)

    def varied(self, best: Trial, others: Sequence[Runtime]) -> Trial:
        """The best so far, or one of ``others``, which give the same answers in other batches or threads.

        It must be faster by more than ``TIE``: less is noise, and would be decided otherwise the next time.
        """
        self._time([best.runtime, *others])
        for runtime in others:
            if runtime in self.trials:
                self.trials[runtime] = replace(self.trials[runtime], loss=best.loss)
        best = self.trials[best.runtime]
        first = max((self.trials[one] for one in others if one in self.trials), key=lambda one: one.speed, default=best)
        return first if first.speed > TIE * best.speed else best

    def judge(self, runtime: Runtime, anyway: bool = False) -> Trial | None:
        """A way's trial with its loss, measured if it is not known and there is time, or ``anyway``."""
        trial = self.trials.get(runtime)
        if trial is not None and trial.loss is None:
            if self.late() and not anyway:
                self.left_out[runtime.name] = "its accuracy was not measured, for the time was over"
                return None
            trial = self.trials[runtime] = replace(trial, loss=self.loss(runtime))
        return trial

    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def found(self, best: Trial) -> Search:
        """All of it."""
        return Search(best, tuple(sorted(self.trials.values(), key=lambda one: -one.speed)), dict(self.left_out))

    def _time(self, ways: Sequence[Runtime]) -> None:
        """Time ways by turns; the first, where it is known, keeps its speed and the others are told by it.

        A machine that is busier now than before would make ways that are looked at now slower than those from before.
        """
        speeds = self.speeds(ways)
        known, now = self.trials.get(ways[0]), speeds.get(ways[0])
        busier = now / known.speed if known is not None and isinstance(now, float) else 1.0
        for runtime, speed in speeds.items():
            if isinstance(speed, str):
                self.left_out[runtime.name] = speed
            else:
                before = self.trials.get(runtime)
                self.trials[runtime] = Trial(runtime, speed / busier, None if before is None else before.loss)


def in_order(ways: Mapping[Name, Way], turn: int) -> list[tuple[Name, Way]]:
    """A turn's own order: what one leaves behind, such as threads, should not always hit the same other."""
    order = list(ways.items())
    random.Random(turn).shuffle(order)
    return order


def by_turns(
    runs: Mapping[Runtime, Callable[[], object]], pictures: int, late: Callable[[], bool] = lambda: False
) -> dict[Runtime, float]:
    """Pictures a second of each: medians over turns in which all take part, so that a busy moment hits all alike.

    Every turn has an order of its own.
    There is one turn at least, and no other when it is ``late`` or for who cannot win; see ``TURNS`` and ``FAR``.
    """
    times: dict[Runtime, list[float]] = {runtime: [] for runtime in runs}
    for run in runs.values():
        run()  # what is made at the first call is no part of it
    begun = time.perf_counter()
    for turn in range(MOST):
        if turn and (late() or (turn >= TURNS and time.perf_counter() - begun > SECONDS)):
            break
        best = {runtime: min(own, default=0.0) for runtime, own in times.items()}
        longest = max(FAR * min(best.values(), default=0.0), SHORT)
        for runtime, run in in_order({one: run for one, run in runs.items() if best[one] <= longest}, turn):
            start = time.perf_counter()
            run()
            times[runtime].append(time.perf_counter() - start)
    return {runtime: pictures / statistics.median(own) for runtime, own in times.items()}
