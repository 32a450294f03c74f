"""A run folder while it is trained in: its lock, its logs and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from vitrail.errors import UserError
from vitrail.settings import TrainSettings
from vitrail.train import checkpoint
from vitrail.train.guard import MOST_ROLLBACKS
from vitrail.train.lock import locked
from vitrail.train.log import METRICS, TIMING, Log
from vitrail.train.state import State

CHECKPOINTS = "checkpoints"
FREE = frozenset({"settings.workers", "settings.keep", "settings.checkpoint_minutes"})
"""What may differ when a run goes on: the result does not depend on it."""
Say = Callable[[str], None]


class Run:
    """What is kept of a run on disk; without a folder, nothing, and every method does nothing."""

    def __init__(self, folder: Path | None, settings: TrainSettings, about: Mapping[str, Any], warn: Say) -> None:
        """``about``: plain JSON values that determine the run and must be the same when it goes on."""
        self.folder = None if folder is None else Path(folder) / CHECKPOINTS
        self.settings, self.about, self.warn = settings, dict(about), warn
        self.logs = {} if folder is None else {name: Log(Path(folder) / name) for name in (METRICS, TIMING)}
        self._saved = (-1, 0)
        """Step of the last checkpoint, and of the last evaluation it knows of."""
        self._anchor: int | None = None
        """Step of the last checkpoint to go back to: one at its fixed place, with no doubt about the loss."""
        self._clock = time.monotonic()

    def log(self, metrics: Mapping[str, Any], timing: Mapping[str, float] | None = None) -> None:
        """Add a line to ``metrics.jsonl``, and one of the same step to ``timing.jsonl``."""
        if self.folder is not None:
            self.logs[METRICS].add(metrics)
            if timing is not None:
                self.logs[TIMING].add({"step": metrics["step"], **timing})

    def flush(self) -> dict[str, int]:
        """Have the disk hold all lines; returns the logs' lengths in bytes."""
        return {name: log.flush() for name, log in self.logs.items()}

    def resume(self, state: State) -> None:
        """Go on where the last sound checkpoint was, if there is one; the logs are cut to what they were then.

        Raises:
            UserError: the checkpoint is of another run; the sentence names what differs.
        """
        if self.folder is None:
            return
        checkpoint.sweep(self.folder)
        found = checkpoint.latest(self.folder, self.warn)
        if found is None:
            if checkpoint.steps_in(self.folder):
                self.warn("No checkpoint is sound, so training starts again.")
            for log in self.logs.values():
                log.go_back(0)
            return
        self._compare(found.facts["about"])
        if found.facts["machine"] != _machine(state):
            self.warn(
                "This is another machine or installation than the checkpoint's, so the result may differ in the "
                f"last digits from that of an uninterrupted run: {found.facts['machine']}, now {_machine(state)}."
            )
        state.restore(found.step, found.tensors, found.facts)
        self._saved, self._anchor = (found.step, state.decisions.evaluated), found.facts["anchor"]
        for name, log in self.logs.items():
            if not log.go_back(found.facts["logs"][name]):
                self.warn(f"{log.path} has lost lines that it had at step {found.step}; it goes on without them.")

    def settle(self, state: State, urgent: bool) -> None:
        """Write a checkpoint if one is due, or ``urgent``: the best, the last."""
        late = 0 < 60 * self.settings.checkpoint_minutes <= time.monotonic() - self._clock
        fixed = self._fixed(state.step) and (state.step > 0 or self.settings.on_spike == "rollback")
        if fixed or late or urgent:
            self.save(state)

    def save(self, state: State) -> None:
        """Write a checkpoint unless there is this one, and remove those no longer wanted.

        Raises:
            UserError: the disk is full; the former checkpoints are as they were.
        """
        this = (state.step, state.decisions.evaluated)
        if self.folder is None or self._saved == this:
            return
        returns = self.settings.on_spike == "rollback"
        good = returns and self._fixed(state.step) and not state.decisions.guard.suspect
        last = state.step if good else self._anchor
        facts = {
            **state.facts(),
            "about": self.about,
            "machine": _machine(state),
            "anchor": last,
            "logs": self.flush(),
        }
        checkpoint.write(self.folder, state.step, state.tensors(), facts)
        self._saved, self._anchor, self._clock = this, last, time.monotonic()
        best = state.decisions.best_step if state.decisions.best is not None else None
        checkpoint.prune(
            self.folder, state.step, self.settings.keep, {step for step in (last, best) if step is not None}
        )

    def roll_back(self, state: State, cause: str) -> None:
        """Return to the last good checkpoint with half the rate; what came after it is removed.

        A run that is killed on the way comes to the same decision again, since all that leads to it is saved.

        Raises:
            UserError: it has been done too often, or there is none.
        """
        from_step, before = state.step + 1, state.decisions
        folder = self.folder
        if before.rollbacks >= MOST_ROLLBACKS:
            raise UserError(
                f"At step {from_step} {cause}, after going back {before.rollbacks} times: lower the learning rate "
                "much more, or look for what is wrong with the data."
            )
        found = None if folder is None else checkpoint.latest(folder, self.warn, lambda c: c.facts["anchor"] == c.step)
        if found is None or folder is None:
            raise UserError(f"At step {from_step} {cause}, and there is no checkpoint to go back to.")
        state.restore(found.step, found.tensors, found.facts)
        state.decisions.rate_factor = before.rate_factor / 2
        state.decisions.rollbacks = before.rollbacks + 1
        for step in checkpoint.steps_in(folder):
            if step > found.step:
                checkpoint.remove(folder, step)
        self._saved, self._anchor = (found.step, state.decisions.evaluated), found.step
        factor = state.decisions.rate_factor
        self.log({"step": found.step, "back_from": from_step, "cause": cause, "rate_factor": factor})
        self.warn(f"At step {from_step} {cause}: back to step {found.step}, with {factor:g} times the learning rate.")

    def _fixed(self, step: int) -> bool:
        """Whether a checkpoint is due at a step whatever happened before."""
        return self.settings.checkpoint_every > 0 and step % self.settings.checkpoint_every == 0

    def _compare(self, before: Mapping[str, Any]) -> None:
        here, there = dict(_flat(self.about)), dict(_flat(before))
        for name in sorted((set(here) | set(there)) - FREE):
            if here.get(name) != there.get(name):
                assert self.folder is not None
                raise UserError(
                    f"{self.folder.parent} was trained with {name} = {there.get(name)!r}, not {here.get(name)!r}: "
                    "go on with the same, or choose another folder."
                )


@contextmanager
def running(folder: Path | None, settings: TrainSettings, about: Mapping[str, Any], warn: Say) -> Iterator[Run]:
    """A run folder to train in, held against other processes; None: nothing is kept.

    Raises:
        UserError: another process is training there.
    """
    if folder is None:
        yield Run(None, settings, about, warn)
        return
    with locked(folder):
        run = Run(folder, settings, about, warn)
        try:
            yield run
        except Exception:
            with suppress(UserError):
                run.flush()  # what led to the error is worth a look
            raise


def begun_with(folder: Path, warn: Say) -> dict[str, Any] | None:
    """The ``about`` of the run in a folder, if a checkpoint is there: what was chosen then holds when it goes on."""
    found = checkpoint.latest(Path(folder) / CHECKPOINTS, warn)
    return None if found is None else dict(found.facts["about"])


def _machine(state: State) -> dict[str, Any]:
    """What else decides the last digits of a sum."""
    kinds = sorted({parameter.device.type for parameter in state.learner.parameters()})
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "devices": kinds}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested tables."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
