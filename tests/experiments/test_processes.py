"""Processes that share an experiment's folder, or are stopped: each run is made once, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.test_lab import _lab, _run
from vitrail.experiments import lab
from vitrail.train.lock import Busy, locked

TWICE = """
import sys
from pathlib import Path
from tests.experiments.test_lab import MODEL, SETTINGS, _lab, _run
from vitrail.report.terminal import Show
from dataclasses import replace
made = replace(_lab(Path(sys.argv[1]), Path(sys.argv[2])), show=Show())
first = _run()
short = {name: value for name, value in SETTINGS.items() if name not in MODEL}
later = [_run(steps=2, learning_rate=1e-3 * rate) for rate in range(1, 4)]
for result in made.results([first, *later, replace(first, settings=short, start=first)]):
    print(result.accuracy)
"""


def test_the_same_command_twice_at_once_makes_each_run_once(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWICE, str(tmp_path), str(data)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    (one, said), (other, also) = (process.communicate() for process in both)
    assert [process.returncode for process in both] == [0, 0], said + also
    assert one == other
    assert len(one.splitlines()) == 5
    assert (said + also).count(" took ") == 5
    assert len(list((tmp_path / "cells").iterdir())) == 5


def test_a_run_that_another_process_makes_is_left_to_it(data: Path, tmp_path: Path) -> None:
    run = _run()
    with locked(tmp_path / "runs" / f"{run.key}.claim"), pytest.raises(Busy):
        lab.make(run, tmp_path, data.parent)
    assert lab.make(run, tmp_path, data.parent) is not None
    assert lab.make(run, tmp_path, data.parent) is None


STOPPED = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.experiments.test_lab import _lab, _run
from vitrail.report.terminal import Show
if __name__ == "__main__":
    made = replace(_lab(Path(sys.argv[1]), Path(sys.argv[2])), show=Show(), processes=2)
    made.results([_run(), _run(steps=1_000_000, learning_rate=1e-3), _run(steps=1_000_000, learning_rate=1e-4)])
"""


def test_ctrl_c_ends_the_processes_too(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    command = [sys.executable, str(script), str(tmp_path), str(data)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    assert any(" took " in line for line in process.stderr), "the short run is made, a long one goes on"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0
    for claim in (tmp_path / "runs").glob("*.claim"):
        with locked(claim):  # nobody makes it any more
            pass


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.experiments.test_lab import _lab, _run
from vitrail.train import loop
usual = loop._line
def line(step):
    if step.done == 3 and list(Path(sys.argv[1]).glob("cells/*")):
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(step)
loop._line = line
_lab(Path(sys.argv[1]), Path(sys.argv[2])).results([_run(), _run().but(seed=1)])
"""


def test_killed_in_the_middle_of_a_run_it_repeats_no_finished_one(data: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "killed", [_run(), _run().but(seed=1)]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out), str(data)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (cell,) = (out / "cells").iterdir()
    before = cell.stat().st_mtime_ns
    found = _lab(out, data).results(runs)
    assert (out / "cells" / f"{runs[0].key}.json").stat().st_mtime_ns == before
    whole = _lab(tmp_path / "whole", data).results(runs)
    assert [(one.correct, one.curve) for one in found] == [(one.correct, one.curve) for one in whole]
