"""SIGKILL at random moments of a run, and what it ends with: ``python -m benchmarks.resume [KILLS]``.

A small ViT learns the built-in ``digits`` with everything switched on: RandAugment, erasing, mixup, cutmix,
repeated views, patches left out, dropout, drop path, two pieces a batch, clipping, an average, evaluations
with the best kept, checkpoints, going back armed. Once uninterrupted; then again and again, each process
killed at a random moment of its start or its training and followed by another in the same folder, with 0 or
2 loader processes as chance has it, until the run has ended; until there have been ``KILLS`` (30). Every
finished run must have the uninterrupted one's last checkpoint (weights, averages, optimiser) and
``metrics.jsonl``, byte for byte.

About 10 minutes on two cores.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results_file import record
from vitrail.config import EncoderConfig, HeadConfig, Preprocessing, ViTConfig
from vitrail.data.preprocess import preprocess
from vitrail.data.read import read_image
from vitrail.data.sources import open_dataset
from vitrail.model.build import build
from vitrail.objectives.supervised import Supervised
from vitrail.record import to_dict
from vitrail.settings import Augmentation, TrainSettings
from vitrail.train import checkpoint
from vitrail.train.log import METRICS
from vitrail.train.loop import train
from vitrail.train.run import CHECKPOINTS
from vitrail.train.state import State

MODEL = ViTConfig(
    EncoderConfig(3, 48, 4, 96, dropout=0.1, drop_path=0.1), (4, 4), (16, 16), head=HeadConfig(classes=10)
)
HOW = Preprocessing((16, 16), fit="squash", crop_fraction=1.0)
POLICY = Augmentation(flip=0.0, mixing=0.7, drop_patches=0.25)
SETTINGS = TrainSettings(
    300,
    64,
    accumulate=2,
    repeats=2,
    learning_rate=2e-3,
    average=0.1,
    evaluate_every=50,
    checkpoint_every=20,
    checkpoint_minutes=0.02,
    on_spike="rollback",
)


@dataclass(frozen=True)
class View:
    """A digit's view; can be sent to another process."""

    objective: Supervised
    paths: list[Path]

    def __call__(self, sample: int, chance: np.random.Generator) -> Tensor:
        """(C, H, W)."""
        return self.objective.views(read_image(self.paths[sample]), chance)


def learn(folder: Path, workers: int) -> None:
    """Train in ``folder``, from where it stands."""
    data = open_dataset("digits", 0.2, 0)
    objective = Supervised(HOW, POLICY)
    torch.manual_seed(0)
    model = build(MODEL)
    shown = torch.stack([preprocess(read_image(sample.path), HOW) for sample in data.val])
    truth = torch.tensor([sample.label for sample in data.val])
    shadow = build(MODEL).eval()

    def evaluate(state: State) -> tuple[float, dict[str, float]]:
        shadow.load_state_dict(state.averaged())
        with torch.inference_mode():
            accuracy = float((shadow(shown).argmax(dim=-1) == truth).float().mean())
        return accuracy, {"val_accuracy": accuracy}

    train(
        State.start(model, objective.modules, SETTINGS, model.depth, MODEL.encoder.layers + 1),
        objective,
        View(objective, [sample.path for sample in data.train]),
        torch.tensor([sample.label for sample in data.train]),
        replace(SETTINGS, workers=workers),
        torch.device("cpu"),
        folder=folder,
        about={"model": to_dict(MODEL), "preprocessing": to_dict(HOW), "augmentation": to_dict(POLICY)},
        evaluate=evaluate,
        warn=lambda sentence: print(sentence, file=sys.stderr, flush=True),
    )


def ended(folder: Path) -> dict[str, str]:
    """SHA-256 of what a finished run leaves."""
    last = checkpoint.place(folder / CHECKPOINTS, SETTINGS.steps) / checkpoint.TENSORS
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (last, folder / METRICS)}


def reached(folder: Path) -> int:
    """The step of the last checkpoint."""
    return next(iter(checkpoint.steps_in(folder / CHECKPOINTS)), 0)


def main(kills: int = 30) -> None:
    """Kill, resume, compare, print and record."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        _process(Path(scratch, "whole"), 0).wait()
        seconds = time.perf_counter() - start
        wanted = ended(Path(scratch, "whole"))
        print(f"uninterrupted: {seconds:.0f} s", wanted)
        done: list[dict[str, Any]] = []
        runs: list[dict[str, Any]] = []
        while len(done) < kills or not runs[-1]["ended"]:
            if not runs or runs[-1]["ended"]:
                runs.append({"kills": 0, "ended": False})
            folder, workers = Path(scratch, str(len(runs))), chance.choice([0, 2])
            process = _process(folder, workers)
            moment = chance.uniform(0.0, 0.6 * seconds) if len(done) < kills else 100 * seconds
            try:
                code = process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                runs[-1]["kills"] += 1
                done.append({"after_seconds": round(moment, 1), "workers": workers, "checkpoint": reached(folder)})
                print("killed", done[-1], flush=True)
                continue
            if code:
                raise SystemExit(f"A run ended with code {code}.")
            runs[-1] |= {"ended": True, "the_same": ended(folder) == wanted}
            print("ended", runs[-1], flush=True)
    same = all(run["the_same"] for run in runs)
    print(f"{len(done)} kills in {len(runs)} runs; {'all end the same' if same else 'THEY DIFFER'}")
    findings = {"steps": SETTINGS.steps, "uninterrupted_seconds": round(seconds, 1), "all_the_same": same}
    print(record("resume", {**findings, "sha256": wanted, "runs": runs, "kills": done}))
    if not same:
        raise SystemExit(1)


def _process(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.resume", "--train", str(folder), str(workers)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        learn(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
