"""One process in a run folder; a killed one leaves no lock behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.toys import ALL_ON, run
from vitrail.errors import UserError
from vitrail.train import lock
from vitrail.train.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from vitrail.train.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"run is being trained in by process {process.pid}: wait for it"):
            run(ALL_ON, tmp_path / "run")
        process.send_signal(signal.SIGKILL)
    assert run(ALL_ON, tmp_path / "run").step == ALL_ON.steps


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path):
            with pytest.raises(UserError, match=f"process {os.getpid()}"), locked(tmp_path):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with locked(tmp_path):
        pass


def test_without_the_systems_locks_the_file_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path):
        words = rf"by process {os.getpid()}: wait for it to end, or, if there is no such process any more, remove"
        with pytest.raises(UserError, match=words), locked(tmp_path):
            pass
    assert not (tmp_path / lock.NAME).exists()
    with locked(tmp_path):
        pass
