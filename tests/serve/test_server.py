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
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from torch import Tensor

from tests.serve.serving import toy
from vitrail.errors import UserError
from vitrail.report.terminal import Show
from vitrail.runtime.plan import Backend, Precision
from vitrail.runtime.predictor import Predictor
from vitrail.serve.server import listen, serve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy().save(tmp_path_factory.mktemp("serve") / "photos")


@pytest.fixture
def started(model: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-m", "vitrail.cli.main", "serve", str(model), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.kill()


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


def test_what_was_taken_in_is_answered_where_nobody_reads_what_it_says(
    started: subprocess.Popen[str], photos: list[Path]
) -> None:
    """As under ``2>&1 | tee log``, where Ctrl-C ends ``tee`` too."""
    assert started.stderr is not None
    port = int(started.stderr.readline().rpartition(":")[2].split()[0])
    body = photos[0].read_bytes()
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/predict?top=1")
    connection.putheader("Content-Length", str(len(body)))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(4096).startswith(b"HTTP/1.1 100 "), "it waits for the picture"
    started.stderr.close()
    started.send_signal(signal.SIGINT)
    with suppress(ConnectionError):
        while True:  # until it takes in no more
            socket.create_connection(("127.0.0.1", port), timeout=60).close()
    connection.send(body)
    with connection.getresponse() as answer:
        assert (answer.status, len(json.load(answer)["labels"])) == (200, 1)
    connection.close()
    assert started.wait(60) == 0


class Sized:
    """An engine that is built for one size of batch at a time."""

    backend: Backend = "openvino"
    precision: Precision = "fp32"
    sizes: tuple[int, ...] = (1, 2, 4, 8)

    def __init__(self, usual: Predictor, events: list[object]) -> None:
        self.usual, self.events = usual, events

    def __call__(self, images: Tensor) -> Tensor:
        self.events.append(len(images))
        return self.usual.features(images)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (3, [1, 2, 4]), (4, [1, 2, 4]), (32, [1, 2, 4, 8])])
def test_it_is_compiled_for_all_sizes_of_batches_before_it_says_where_it_is(
    most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    classifier = toy()
    classifier.predictor = replace(classifier.predictor, engine=Sized(classifier.predictor, events))
    monkeypatch.setattr("vitrail.serve.server.load", lambda *_, **__: classifier)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    monkeypatch.setattr(Show, "say", lambda self, sentence: events.append(sentence.split()[0]))
    serve("toy", port=0, batch_size=most)
    assert events == ["Compiling", *sizes, "toy"]


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


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("photos..example", r"at photos\.\.example, port 8000 \(no host is called so\)"),
        ("a" * 64, "no host is called so"),
        ("", "An empty --host is no address"),
        (" ", "An empty --host is no address"),
    ],
)
def test_what_cannot_be_an_address_is_told(host: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python does before it asks the network, which no test may.
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: host.encode("idna"))
    with pytest.raises(UserError, match=words):
        serve("none", host)


def test_a_name_that_is_none_is_told_before_the_model_is_loaded() -> None:
    with pytest.raises(UserError, match="'https://' is no name"):
        serve("no such model", port=0, names=["https://"])


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
