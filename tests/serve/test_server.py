"""``vitrail serve`` as a process: it says where it is, ends in order, and says why it cannot begin."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.serve.serving import toy
from vitrail.errors import UserError
from vitrail.serve.server import listen, serve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy().save(tmp_path_factory.mktemp("serve") / "photos")


@pytest.fixture
def started(model: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-m", "vitrail.cli.main", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_it_answers_and_ends_in_order(
    started: subprocess.Popen[str], photos: list[Path], sent: signal.Signals, code: int
) -> None:
    assert started.stderr is not None
    line = started.stderr.readline()
    found = re.fullmatch(r"photos answers at (http://127\.0\.0\.1:\d+) until Ctrl-C\.\n", line)
    assert found is not None, line
    with urlopen(Request(f"{found[1]}/predict?top=1", photos[0].read_bytes()), timeout=60) as answer:
        assert len(json.load(answer)["labels"]) == 1
    started.send_signal(sent)
    _, rest = started.communicate(timeout=60)
    assert (started.returncode, rest) == (code, "Answering what was taken in. Once more ends it at once.\n")


def test_asked_twice_it_ends_at_once(started: subprocess.Popen[str]) -> None:
    assert started.stderr is not None
    port = int(started.stderr.readline().rpartition(":")[2].split()[0])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 "), "it waits for the picture"
        started.send_signal(signal.SIGINT)
        assert started.stderr.readline().startswith("Answering what was taken in.")
        started.send_signal(signal.SIGINT)
        _, rest = started.communicate(timeout=20)
    assert (started.returncode, rest) == (130, "")


def test_an_address_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1, port {port} \(address already in use\): choose another --p"):
            serve("none", port=port)


def test_an_answer_does_not_wait_for_the_first_half_of_it_to_be_acknowledged() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_of_no_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"nowhere, port 8000 \(name or service not known\)"):
        serve("none", "nowhere")


def test_an_open_address_is_warned_of(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    serve(str(model), "0.0.0.0", 0)
    assert "there is no password" in capfd.readouterr().err


def test_without_the_libraries_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'vitrail\[serve\]'"):
        serve("none")
