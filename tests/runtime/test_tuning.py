"""The search for the fastest way, over speeds and losses that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.errors import UserError
from vitrail.runtime import tuning
from vitrail.runtime.plan import Backend, Precision, Runtime, parse
from vitrail.runtime.tuning import Loss, Search, Trial, Tuner, by_turns

REFERENCE, USUAL = Runtime("eager", "fp32"), Runtime("eager", "bf16")
WAYS = [Runtime(backend, precision) for backend in get_args(Backend) for precision in get_args(Precision)]
SCHEDULES = [(level, 0) for level in range(1, 20)]


class Fake:
    """A machine: a speed and a loss for every way, each counted when it is asked for."""

    def __init__(self, speeds: Sequence[float], losses: Sequence[float]) -> None:
        self.speed = dict(zip(WAYS, speeds, strict=True))
        self.lost = dict(zip(WAYS, losses, strict=True))
        self.lost[REFERENCE] = 0.0
        self.judged: list[Runtime] = []

    def speeds(self, ways: Sequence[Runtime]) -> dict[Runtime, float | str]:
        found: dict[Runtime, float | str] = {}
        for way in ways:
            plain = replace(way, merging=(), batch_size=REFERENCE.batch_size)
            found[way] = self.speed[plain] * (1 + sum(way.merging) / 40) if self.speed[plain] > 0 else "It is broken."
        return found

    def loss(self, way: Runtime) -> Loss:
        self.judged.append(way)
        points = self.lost[replace(way, merging=())] + sum(way.merging) / 10
        return Loss(1 - points / 100, points, points - 1, points + 1)


machines = st.builds(
    Fake,
    st.lists(st.floats(1, 100), min_size=len(WAYS), max_size=len(WAYS)),
    st.lists(st.floats(-1, 3), min_size=len(WAYS), max_size=len(WAYS)),
)


@given(machine=machines, allowed=st.floats(0, 2))
def test_the_winner_is_that_of_a_full_sweep(machine: Fake, allowed: float) -> None:
    tuner = Tuner(machine.speeds, machine.loss, allowed)
    best = tuner.plain(WAYS, REFERENCE, USUAL)
    fit = [way for way in WAYS if machine.lost[way] <= allowed]
    assert best.speed == max(machine.speed[way] for way in fit)
    faster = [way for way in WAYS if machine.speed[way] >= best.speed]
    assert set(machine.judged) <= {REFERENCE, best.runtime, *faster}, "the accuracy of what cannot win is not asked"


@given(machine=machines, allowed=st.floats(0, 2))
def test_as_much_is_merged_as_is_allowed(machine: Fake, allowed: float) -> None:
    tuner = Tuner(machine.speeds, machine.loss, allowed)
    plain = tuner.plain(WAYS, REFERENCE, USUAL)
    best = tuner.merged(plain, [reversed(SCHEDULES)])
    fit = [merging for merging in SCHEDULES if machine.lost[plain.runtime] + sum(merging) / 10 <= allowed]
    assert best.runtime.merging == (fit[-1] if fit else ())
    assert best.loss is not None
    assert best.loss.points <= allowed


def test_of_two_families_the_faster_wins_whatever_its_operations() -> None:
    machine = Fake([5] * len(WAYS), [0] * len(WAYS))

    def speeds(ways: Sequence[Runtime]) -> dict[Runtime, float | str]:
        return {way: 8.0 if way.merging == (0, 9) else 5.0 + sum(way.merging) / 10 for way in ways}

    for families in ([[(20, 0), (12, 0)], [(0, 9), (0, 8)]], [[(0, 9), (0, 8)], [(20, 0), (12, 0)]]):
        tuner = Tuner(speeds, machine.loss, 1.2)
        best = tuner.merged(tuner.plain(WAYS, REFERENCE, USUAL), families)
        assert best.runtime.merging == (0, 9)
        tried = {trial.runtime.merging for trial in tuner.found(best).trials}
        assert tried == {(), (20, 0), (12, 0), (0, 9)}, "what a family has beyond its first that will do is not built"


def test_a_schedule_that_cannot_be_built_does_not_end_the_search() -> None:
    machine = Fake([5] * len(WAYS), [0] * len(WAYS))

    def speeds(ways: Sequence[Runtime]) -> dict[Runtime, float | str]:
        return {**machine.speeds(ways), **{way: "It was rejected." for way in ways if sum(way.merging) > 10}}

    tuner = Tuner(speeds, machine.loss, 3)
    best = tuner.merged(tuner.plain(WAYS, REFERENCE, USUAL), [reversed(SCHEDULES)])
    assert sum(best.runtime.merging) == 10


@pytest.mark.parametrize(("gain", "wins"), [(1.05, False), (1.2, True)])
def test_a_tie_changes_nothing(gain: float, wins: bool) -> None:
    other = replace(REFERENCE, batch_size=8)
    tuner = Tuner(
        lambda ways: {way: 10 * (gain if way == other else 1) for way in ways}, Fake([1] * 12, [0] * 12).loss, 1
    )
    best = tuner.plain([], REFERENCE, REFERENCE)
    found = tuner.varied(best, [other])
    assert (found.runtime == other) == wins
    assert found.loss == best.loss


def test_what_cannot_be_had_is_left_out_and_named() -> None:
    machine = Fake([0 if way.backend == "openvino" else 5 for way in WAYS], [0] * len(WAYS))
    tuner = Tuner(machine.speeds, machine.loss, 0.3)
    best = tuner.plain(WAYS, REFERENCE, USUAL)
    found = tuner.found(best)
    assert set(found.left_out) == {"openvino:fp32", "openvino:bf16", "openvino:int8"}
    assert found.left_out["openvino:int8"] == "It is broken."
    assert best.runtime.backend != "openvino"
    broken = Fake([0] * len(WAYS), [0] * len(WAYS))
    with pytest.raises(UserError, match=r"cannot be run here: It is broken\."):
        Tuner(broken.speeds, broken.loss, 0.3).plain(WAYS, REFERENCE, USUAL)


def test_when_the_time_is_over_what_was_measured_counts() -> None:
    machine = Fake(range(1, len(WAYS) + 1), [0] * len(WAYS))
    tuner = Tuner(machine.speeds, machine.loss, 0.3, deadline=0)
    best = tuner.plain(WAYS, REFERENCE, USUAL)
    assert best.runtime == USUAL, "tuning makes nothing slower than it was"
    assert set(machine.judged) == {REFERENCE, USUAL}
    assert tuner.merged(best, [SCHEDULES]) == best
    assert all("time was over" in why for why in tuner.found(best).left_out.values())


@given(points=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    trials = [
        Trial(Runtime(batch_size=number + 1), speed, Loss(accuracy / 10, 0, 0, 0))
        for number, (speed, accuracy) in enumerate(points)
    ]
    front = {(trial.speed, trial.loss.accuracy) for trial in Search(trials[0], tuple(trials), {}).front() if trial.loss}
    for speed, tenths in points:
        beaten = any(s >= speed and a >= tenths and (s, a) != (speed, tenths) for s, a in points)
        assert ((speed, tenths / 10) in front) == (not beaten)


def test_turns_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    runs = {Runtime(): lambda: order.append("a"), Runtime("onnx"): lambda: order.append("b")}
    speeds = by_turns(runs, 8)
    turns = [tuple(order[at : at + 2]) for at in range(0, len(order), 2)]
    assert len(turns) == 1 + tuning.MOST, "what is quick takes more turns"
    assert set(turns) == {("a", "b"), ("b", "a")}, "nobody is always the one after the other"
    assert all(speed > 0 for speed in speeds.values())
    order.clear()
    monkeypatch.setattr(tuning, "SECONDS", 0.0)
    by_turns(runs, 8)
    assert sorted(order) == ["a"] * (1 + tuning.TURNS) + ["b"] * (1 + tuning.TURNS)
    order.clear()
    by_turns(runs, 8, late=lambda: True)
    assert sorted(order) == ["a", "a", "b", "b"], "what is too late is measured once"


def test_whoever_cannot_win_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counts = 0.0, dict.fromkeys(("quick", "near", "far", "short"), 0)

    def run(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal clock
            clock += seconds
            counts[name] += 1

        return call

    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: clock))
    seconds = {"quick": 0.4, "near": 1.1, "far": 1.3}
    ways = dict(zip(WAYS, seconds, strict=False))
    found = by_turns({way: run(name, seconds[name]) for way, name in ways.items()}, 4)
    assert found == pytest.approx({way: 4 / seconds[name] for way, name in ways.items()})
    assert counts["quick"] == counts["near"] > tuning.TURNS
    assert counts["far"] == 2, "to warm up, and once"
    by_turns({WAYS[0]: run("quick", 0.01), WAYS[1]: run("short", 0.4)}, 4)
    assert counts["short"] == 1 + tuning.MOST, "what takes no time is measured as often as all"


def test_a_machine_that_becomes_busy_makes_nothing_look_slower() -> None:
    machine = Fake(range(1, len(WAYS) + 1), [0] * len(WAYS))
    busy = 1.0

    def speeds(ways: Sequence[Runtime]) -> dict[Runtime, float | str]:
        nonlocal busy
        busy *= 2
        return {way: speed / busy for way, speed in machine.speeds(ways).items() if isinstance(speed, float | int)}

    tuner = Tuner(speeds, machine.loss, 0.3)
    plain = tuner.plain(WAYS, REFERENCE, USUAL)
    assert plain.runtime == WAYS[-1]
    best = tuner.merged(plain, [[(2, 0)]])
    assert best.runtime.merging == (2, 0)
    assert best.speed / tuner.trials[plain.runtime].speed == pytest.approx(1.05)
    found = tuner.varied(best, [replace(best.runtime, batch_size=8)])
    assert found == best
    assert tuner.found(best).trials[0].speed == best.speed


def test_words_for_ways() -> None:
    assert parse("openvino:int8") == Runtime("openvino", "int8")
    assert parse("compiled") == Runtime("compiled", "fp32")
    assert Runtime("onnx", "int8", (3, 4), 8, threads=1).name == "onnx:int8, 7 merged, batches of 8, 1 thread"
    for text, words in (
        ("openvno", "no backend 'openvno'; the nearest is openvino"),
        ("onnx:int4", "no precision 'int4'"),
        ("onnx:", "no precision ''"),
    ):
        with pytest.raises(UserError, match=words):
            parse(text)
    for numbers, words in (
        ({"batch_size": 0}, "with 0 pictures in a batch"),
        ({"batch_size": 10**21}, "with 1000000000000000000000 pictures in a batch: say 1 to 65,536"),
        ({"threads": 0}, "with 0 threads"),
        ({"threads": -3}, "with -3 threads"),
    ):
        with pytest.raises(UserError, match=words):
            Runtime(**numbers)  # type: ignore[arg-type]
