"""The hub's protocol, spoken by a server in this process, and what happens when nobody answers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import transformers

from vitrail.errors import UserError
from vitrail.weights import hub
from vitrail.weights.hub import SHORT_NAMES, hub_id
from vitrail.weights.wheel import WHEELS

NOBODY = "http://127.0.0.1:9"  # the port that discards, if anything listens at all
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 56, "patch_size": 14}
# A program that loads what it reads names of, line by line, and answers in JSON, line by line.
LOADER = """
import json, sys
from vitrail.errors import UserError
from vitrail.weights.load import load_weights
for name in map(str.strip, sys.stdin):
    try:
        loaded = load_weights(name)
    except UserError as error:
        answer = {"sentence": str(error)}
    else:
        how = loaded.card.preprocessing
        answer = {"size": how.size, "fraction": how.crop_fraction, "report": loaded.report.summary()}
        answer |= {key: loaded.card.provenance[key] for key in ("source", "revision")}
    print(json.dumps(answer), flush=True)
"""


class Hub(ThreadingHTTPServer):
    """Serves ``folder``/owner/name/* as the hub would; ``status`` other than 200 answers every request."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Resolve)
        self.folder = folder
        self.status = 200
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Resolve(BaseHTTPRequestHandler):
    """GET and HEAD of /{owner}/{name}/resolve/{revision}/{file}."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        headers, content, status = {"X-Repo-Commit": COMMIT}, b"", self.server.status
        if status == 200 and len(parts) == 5 and parts[2] == "resolve":
            repository = self.server.folder / parts[0] / parts[1]
            file = repository / parts[4]
            if not repository.is_dir():
                status, headers = 404, {"X-Error-Code": "RepoNotFound"}
            elif parts[3] not in ("main", COMMIT):
                status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
            elif not file.is_file():
                status, headers = 404, {**headers, "X-Error-Code": "EntryNotFound"}
            else:
                content = file.read_bytes()
                headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


class Loader:
    """A process of its own that loads names: the hub library reads its settings when it is imported."""

    def __init__(self, endpoint: str, home: Path, **extra: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*", **extra}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed on leaving
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOADER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        with self.process, self.errors:
            self.process.communicate()

    def load(self, name: str) -> dict[str, Any]:
        """What the loader says: so nothing else may be on its standard output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        self.errors.seek(0)
        assert line, self.errors.read()
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub_server:
        thread = threading.Thread(target=hub_server.serve_forever, args=(0.02,))
        thread.start()
        yield hub_server
        hub_server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the hub library of this module's loader keeps its cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(serving: Hub, home: Path) -> Iterator[Loader]:
    """A loader that this hub is the hub of."""
    with Loader(serving.url, home) as loader:
        yield loader


@pytest.fixture
def server(serving: Hub) -> Hub:
    """The hub, in order."""
    serving.status = 200
    return serving


@pytest.fixture
def loader(running: Loader, server: Hub) -> Loader:
    """The loader, and the hub in order."""
    return running


def _publish(server: Hub, repository: str) -> Path:
    """Put a toy DINOv2 in shards on the hub."""
    folder = server.folder / repository
    folder.mkdir(parents=True)
    transformers.Dinov2Model(transformers.Dinov2Config(**TOY)).save_pretrained(folder, max_shard_size="10KB")
    processor = transformers.BitImageProcessor(size={"shortest_edge": 35}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(folder)
    return folder


def test_download_then_cache(server: Hub, loader: Loader, home: Path) -> None:
    _publish(server, "facebook/dinov2-small")
    first = loader.load("dinov2-small")
    assert (first["size"], first["fraction"]) == ([28, 28], 0.8)
    assert (first["source"], first["revision"]) == ("facebook/dinov2-small", COMMIT)
    assert "position.grid resampled 4x4 -> 2x2 (bicubic)" in first["report"]
    asked = len(server.asked)
    assert loader.load("dinov2-small") == first
    assert loader.load("facebook/dinov2-small@main")["revision"] == COMMIT
    assert len(server.asked) == asked  # what is cached is asked for nowhere
    with Loader(NOBODY, home, HF_HUB_OFFLINE="1") as offline:
        assert offline.load("dinov2-small") == first
        assert "cannot be reached from here: " in offline.load("dinov2-base")["sentence"]


def test_cache_without_an_answer_about_the_preprocessing_is_no_answer(server: Hub, loader: Loader, home: Path) -> None:
    """Another program may have fetched the weights alone; then the preprocessing must not be made up."""
    folder = _publish(server, "toy/preprocessed")
    assert loader.load("toy/preprocessed")["size"] == [28, 28]

    def forget() -> None:
        for entry in (home / "hub" / "models--toy--preprocessed").rglob("preprocessor_config.json"):
            entry.unlink()

    forget()
    assert loader.load("toy/preprocessed")["size"] == [28, 28]
    forget()
    (folder / "preprocessor_config.json").unlink()
    without = loader.load("toy/preprocessed")
    assert (without["size"], without["fraction"]) == ([56, 56], 0.875)
    asked = len(server.asked)
    assert loader.load("toy/preprocessed") == without
    assert len(server.asked) == asked  # that there is none is known now


def test_unknown_repository_revision_and_file(server: Hub, loader: Loader) -> None:
    _publish(server, "toy/known")
    sentence = loader.load("facebook/dinov2-smal")["sentence"]
    assert sentence == (
        "The hub has no model facebook/dinov2-smal; the nearest is dinov2-small; check the name, or log in if it is "
        "private."
    )
    assert re.match(r"The hub did not hand out toy/known: .*\.$", loader.load("toy/known@v9")["sentence"])
    (server.folder / "toy" / "empty").mkdir()
    (server.folder / "toy" / "empty" / "config.json").write_text("{}")
    sentence = loader.load("toy/empty")["sentence"]
    assert re.match(r"toy/empty at main is no model Vitrail can load: .*\.$", sentence)


def test_an_index_cannot_reach_outside(server: Hub, loader: Loader) -> None:
    index = _publish(server, "toy/outside") / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../../x.safetensors"}}))
    sentence = loader.load("toy/outside")["sentence"]
    assert sentence.endswith("which is no file of tensors beside it: it cannot be trusted.")


def test_nobody_answers_and_nothing_is_cached(tmp_path: Path) -> None:
    with Loader(NOBODY, tmp_path) as loader:
        assert loader.load("dinov2-small")["sentence"] == (
            f"The weights dinov2-small come from facebook/dinov2-small on the hub at {NOBODY}, which cannot be reached "
            "from here: connect, or choose --weights saliency-s14 (real weights from the Python package index) or "
            "--weights none (random ones)."
        )
        loader.errors.seek(0)
        assert loader.errors.read() == ""


def test_a_path_that_is_missing_is_called_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``runs/photos`` could be a hub id; whoever mistyped a path should read so."""

    def nobody(*arguments: Any, **options: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.get_session", nobody)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError,
        match=r"^runs/photos is no path here; as a model it would be on the hub .* cannot be reached from here: ",
    ):
        hub.download("runs/photos", "main", "runs/photos")


def test_names() -> None:
    assert hub_id("dinov2-small") == ("facebook/dinov2-small", "main")
    assert hub_id("google/vit-base-patch16-224@a1b2") == ("google/vit-base-patch16-224", "a1b2")
    assert hub_id("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k") == ("timm/vit_tiny_patch16_224.augreg_in21k", "main")
    assert hub_id("hf_hub:timm/x") == ("timm/x", "main")
    for name in ("saliency-s14", "none", "/abs/path", "a/b/c", "~/models", "dinov2-smal"):
        assert hub_id(name) is None
    assert not set(SHORT_NAMES) & set(WHEELS)
