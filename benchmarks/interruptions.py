"""Ctrl-C, SIGKILL and full disks at random moments: ``python -m benchmarks.interruptions``.

``vitrail finetune`` of the built-in ``digits`` with a small random model, with ``--method probe`` and with
``--method full``, each time with an empty cache:

- SIGINT (Ctrl-C) at ten random moments and SIGKILL at five, one in each tenth or fifth of the processor
  time the command takes (which others at work on the machine do not stretch); and three of each while the
  run folder is being written, which is over too soon for chance to hit it.
- The run folder, or the cache, on a small disk (a tmpfs, so this needs root on Linux) that is full in the
  middle of a file: ten files of each, drawn at random.
- ``embed`` and ``report`` on a full disk where an earlier result stands.

After each: the exit code as a shell gives it (130 for SIGINT, 2 for a full disk, 0 if it was done by
then), no traceback, one sentence about a full disk, no file that does not parse, nothing half-written left
behind (after SIGKILL only under a hidden name), and a run folder that loads or none. Then the same command
once more: it succeeds, or says that the run folder exists, and then the first must not have said to repeat
it, and must have said how to get what is lacking. Anything else is a finding.

About 20 minutes on one core.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.torch import load_file

from benchmarks.results_file import record
from vitrail.errors import UserError
from vitrail.tasks.classifier import load

METHODS = ("probe", "full")
MODEL = ("--weights", "none", "--architecture", "ViT-Ti/16", "--resolution", "32", "--epochs", "1")
PAGE = os.sysconf("SC_PAGE_SIZE")
PLENTY = 256 << 20
"""Bytes of a disk with room for all that is written here."""
PATIENCE = 900
"""Seconds after which a command hangs."""

Process = subprocess.Popen[bytes]
Stop = Callable[[Process], None]
Written = list[tuple[str, int]]
"""Names and bytes of files, in the order in which they were written."""


@dataclass
class Trial:
    """A command that is interrupted, where it writes, what happened and what was wrong with it."""

    what: str
    words: list[str]
    folder: Path
    """Holds ``out``, ``cache``, and nothing else that is checked."""
    about: dict[str, Any] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    @property
    def run_folder(self) -> Path:
        """Where a fine-tuning run goes."""
        return self.folder / "out" / "run"

    def run(self, stop: Stop = lambda process: None) -> tuple[int, str]:
        """Exit code, as a shell gives it, and standard error of the command, which ``stop`` may interrupt."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "vitrail.cli.main", *self.words],
                env={**os.environ, "VITRAIL_CACHE": str(self.folder / "cache")},
                stdout=subprocess.DEVNULL,
                stderr=said,
                # A shell that runs this benchmark in the background has it, and all below it, ignore SIGINT.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )
            try:
                stop(process)
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.found.append(f"no end after {PATIENCE} s")
                process.kill()
                code = process.wait()
            said.seek(0)
            return code if code >= 0 else 128 - code, said.read().decode()

    def expect(self, right: bool, otherwise: str) -> None:
        """Note a finding unless all is right."""
        if not right:
            self.found.append(otherwise)
            print("FINDING", self.what, self.words[-3:], otherwise, flush=True)


def main() -> None:
    """Interrupt in every manner, print and record what came out."""
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        mounts = _mounts(root)
        if not mounts:
            print("Full disks are left out: a tmpfs cannot be mounted here, which takes root on Linux.")
        for method in METHODS:
            whole = _trial(root, method, "uninterrupted")
            before = os.times()
            code, said = whole.run()
            assert code == 0, said
            seconds = os.times().children_user + os.times().children_system - sum(before[2:4])
            written = {place: _written(whole.folder / place) for place in ("out", "cache")}
            print(f"{method}: {seconds:.1f} s of processor time", flush=True)
            for kind, count in ((signal.SIGINT, 10), (signal.SIGKILL, 5)):
                chance = random.Random(f"{method} {kind.name}")
                for part in range(count):
                    moment = seconds * (part + chance.random()) / count
                    trials.append(_signalled(root, method, kind, moment, writing=False))
                for part in range(3):
                    moment = (part + chance.random()) / 30
                    trials.append(_signalled(root, method, kind, moment, writing=True))
            for place in ("out", "cache") if mounts else ():
                # The second method takes up the list where the first left it, so no file is drawn twice.
                chance, first = random.Random(place), 5 * METHODS.index(method)
                for at in _drawn(written[place], chance)[first : first + 5]:
                    trials.append(_filled(root, method, place, written[place], at, chance.random()))
            if mounts and method == "probe":
                trials += _over_earlier_results(whole)
            shutil.rmtree(whole.folder)
    found = [{"what": trial.what, "found": trial.found, **trial.about} for trial in trials if trial.found]
    kinds = Counter(f"{trial.what.partition(' at ')[0]}: exit code {trial.about['code']}" for trial in trials)
    findings = {
        "trials": len(trials),
        "kinds": kinds,
        "full disks": mounts,
        "findings": found,
        "all": [{"what": trial.what, **trial.about} for trial in trials],
    }
    print(json.dumps({"kinds": kinds, "findings": found}, indent=1))
    print(record("interruptions", findings))
    sys.exit(bool(found))


def _trial(root: Path, method: str, what: str) -> Trial:
    folder = Path(tempfile.mkdtemp(dir=root))
    (folder / "out").mkdir()
    (folder / "cache").mkdir()
    out = folder / "out" / "run"
    return Trial(f"{method}, {what}", ["finetune", "digits", *MODEL, "--method", method, "--out", str(out)], folder)


def _signalled(root: Path, method: str, kind: signal.Signals, moment: float, writing: bool) -> Trial:
    """A signal after so many seconds of work, or after so many seconds of writing the run folder."""
    trial = _trial(root, method, f"{kind.name}{' while writing the run folder' if writing else ''} at {moment:.2f} s")
    done = False

    def stop(process: Process) -> None:
        nonlocal done
        while writing and process.poll() is None and not list(trial.run_folder.parent.glob(".run.*.partial")):
            time.sleep(0.002)
        begun = _worked(process) if writing else 0.0
        while process.poll() is None and _worked(process) < begun + moment:
            time.sleep(0.002)
        done = process.poll() is not None
        process.send_signal(kind)
        signalled.append(time.perf_counter())

    signalled: list[float] = []
    code, said = trial.run(stop)
    trial.about |= {"code": code, "seconds from signal to end": round(time.perf_counter() - signalled[0], 2)}
    trial.expect(code == (0 if done else 128 + kind), f"exit code {code}")
    _check(trial, said, killed=kind == signal.SIGKILL)
    return trial


def _worked(process: Process) -> float:
    """Processor seconds of a process so far."""
    with suppress(OSError):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _filled(root: Path, method: str, place: str, written: Written, at: int, share: float) -> Trial:
    """The disk of ``out`` or ``cache`` is full when a share of the file numbered ``at`` is written."""
    trial = _trial(root, method, f"full disk for {place} at {written[at][0]}")
    pages = [-(-size // PAGE) for _, size in written]
    size = max(sum(pages[:at]) + int(share * pages[at]), 1) * PAGE  # a size of 0 would mean no limit
    with _disk(trial.folder / place, size) as resize:
        code, said = trial.run()
        trial.about |= {"code": code, "disk": size}
        trial.expect(code == 2, f"exit code {code}")
        _expect_sentence(trial, said)
        _check(trial, said, killed=False, before_repeating=lambda: resize(PLENTY))
    return trial


def _drawn(written: Written, chance: random.Random) -> list[int]:
    """Positions of files in random order: eight of a kind at the most, of pictures and of features alike."""
    kinds: Counter[str] = Counter()
    drawn = []
    for at in chance.sample(range(len(written)), len(written)):
        kinds[Path(written[at][0]).suffix] += 1
        if kinds[Path(written[at][0]).suffix] <= 8:
            drawn.append(at)
    chance.shuffle(drawn)
    return drawn


def _over_earlier_results(whole: Trial) -> list[Trial]:
    """``embed`` and ``report`` where the disk has no room for the new beside the old: the old stays."""
    trials = []
    pictures = str(whole.folder / "cache" / "data" / "digits" / "val")
    for name in ("features.npz", "features.parquet", "report.html"):
        folder = Path(tempfile.mkdtemp(dir=whole.folder.parent))
        with _disk(folder / "out", PLENTY) as resize:
            run = folder / "out" / "run"
            shutil.copytree(whole.run_folder, run)
            path = run / name
            words = ["report", str(run)] if name == "report.html" else ["embed", str(run), pictures, "--out", str(path)]
            trial = Trial(f"full disk over an earlier result at {name}", words, folder)
            code, said = trial.run()
            assert code == 0, said
            before = {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}
            pages = sum(-(-len(content) // PAGE) for content in before.values())
            room = random.Random(name).randrange(-(-len(before[path]) // PAGE))
            resize((pages + room) * PAGE)
            code, said = trial.run()
            trial.about |= {"code": code, "free": room * PAGE}
            trial.expect(code == 2, f"exit code {code}")
            _expect_sentence(trial, said)
            trial.expect("Traceback" not in said, said)
            after = {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}
            trial.expect(after == before, "the earlier result is not what it was")
            resize(PLENTY)
            code, said = trial.run()
            trial.expect(code == 0, f"repeated: exit code {code}, {said[-300:]}")
        print(trial.what, trial.about, flush=True)
        trials.append(trial)
    return trials


def _expect_sentence(trial: Trial, said: str) -> None:
    sentences = [line for line in said.splitlines() if line.startswith("vitrail: ")]
    trial.about["said"] = sentences[-1].replace(str(trial.folder), "") if sentences else ""
    full = sentences and ("disk is full" in sentences[0] or os.strerror(errno.ENOSPC) in sentences[0])
    trial.expect(len(sentences) == 1 and bool(full), f"said {said[-300:]!r}")


def _check(trial: Trial, said: str, killed: bool, before_repeating: Callable[[], None] = lambda: None) -> None:
    """What must hold after any interruption, and when the command is repeated."""
    run = trial.run_folder
    trial.expect("Traceback" not in said, said[-2000:])
    trial.about["left half-written"] = _expect_whole(trial, killed)
    trial.about["run folder"] = there = run.exists()
    lacking = there and not (run / "report.html").exists()
    if there:
        _expect_loads(trial)
        trial.expect(not lacking or killed or "vitrail report" in said, f"no report, no word how to get it: {said!r}")
    before_repeating()
    code, again = trial.run()
    if there:
        trial.expect(code == 2 and "exists already" in again, f"repeated: exit code {code}, {again[-300:]}")
        trial.expect("the same command" not in said, "told to repeat the command, which then refused")
    else:
        trial.expect(code == 0, f"repeated: exit code {code}, {again[-300:]}")
        _expect_whole(trial, killed)
        _expect_loads(trial)
    if not trial.found:
        shutil.rmtree(trial.folder, ignore_errors=True)
    print(trial.what, trial.about, flush=True)


def _expect_loads(trial: Trial) -> None:
    try:
        load(trial.run_folder, quiet=True)
    except UserError as error:
        trial.expect(False, f"the run folder does not load: {error}")


def _expect_whole(trial: Trial, killed: bool) -> int:
    """Every file parses; how many files and folders with temporary names there are, which only SIGKILL may leave."""
    left = [path for path in trial.folder.rglob(".*.partial") if not re.search(r"\.partial/", str(path))]
    trial.expect(killed or not left, f"left behind: {left}")
    for path in sorted(trial.folder.rglob("*")):
        if path.is_file() and not any(name.endswith(".partial") for name in path.parts):
            try:
                _parse(path)
            except Exception as error:  # every kind of file has its own
                trial.expect(False, f"{path} does not parse: {error!r}")
    return len(left)


def _parse(path: Path) -> None:
    """Read a file to its end.

    Raises:
        Exception: it is cut short or otherwise damaged, or of a kind that is not written here.
    """
    if path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            dict(arrays)
    else:
        text = path.read_text("utf-8")
        whole = text.endswith("\n") or (path.suffix == ".html" and text.endswith("</html>"))
        if path.suffix == ".json":
            json.loads(text)
        elif path.suffix == ".yaml":
            yaml.safe_load(text)
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in text.splitlines()]
        elif path.suffix == ".csv":
            whole = whole and len({len(row) for row in csv.reader(text.splitlines())}) == 1
        elif path.suffix == ".html":
            whole = text.rstrip().endswith("</html>")
        else:
            raise ValueError("nobody asked for such a file")
        if not whole:
            raise ValueError("it is cut short")


def _written(folder: Path) -> Written:
    files = [path for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A small disk at ``folder``; yields what gives it another size."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield lambda size: _mount("-o", f"remount,size={size}", str(folder))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, stderr=subprocess.DEVNULL)


def _mounts(root: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    try:
        with _disk(root / "trial", PAGE):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


if __name__ == "__main__":
    main()
