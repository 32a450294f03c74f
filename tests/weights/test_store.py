"""What is written is read back, bit for bit; what cannot be trusted is not run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from vitrail.config import EncoderConfig, HeadConfig, ModelCard, Preprocessing, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.weights import store
from vitrail.weights.store import is_model, read_model, read_tensors, shards, write_model, write_tensors

CARD = ModelCard(
    ViTConfig(EncoderConfig(2, 8, 2, 16, layer_scale=0.5), (4, 4), (8, 12), head=HeadConfig(("mean",), classes=2)),
    Preprocessing((8, 12), "squash", 0.9, "lanczos", (0.1, 0.2, 0.3), (1 / 3, 0.2, 0.7)),
    ("Käuzchen", "鸟"),
    {"source": "a test", "nested": {"list": [1, 2.5, None]}},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_round_trip(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in build(CARD.architecture).state_dict().items()}
    tensors["position.grid"][0, 0, 0] = float("nan")
    assert not is_model(tmp_path)
    write_model(tmp_path / "new" / "model", CARD, tensors)
    assert is_model(tmp_path / "new" / "model")
    card, read = read_model(tmp_path / "new" / "model")
    assert card == CARD
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].view(torch.uint8), tensor.view(torch.uint8))


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "a.safetensors", {"t": whole.T, "slice": torch.ones(5)[1:3].requires_grad_()}, {})
    read = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(read["t"], whole.T)
    assert read["slice"].tolist() == [1.0, 1.0]


@given(st.binary(max_size=300), st.sampled_from(["a.safetensors", "a.pth", "a.bin", "a.safetensors.index.json"]))
def test_no_garbage_gets_past_a_sentence(tmp_path_factory: Any, content: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_tensors(path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pickled_payload_does_not_run(suffix: str, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    torch.save({"weight": torch.ones(2), "payload": Payload(witness)}, tmp_path / f"zip{suffix}")
    (tmp_path / f"raw{suffix}").write_bytes(pickle.dumps({"payload": Payload(witness)}, protocol=2))
    for kind in ("zip", "raw"):
        with pytest.raises(
            UserError, match=r"cannot be read as weights: it holds more than tensors, which could run code"
        ):
            read_tensors(tmp_path / f"{kind}{suffix}")
    assert not witness.exists()
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists()  # so it would have


def test_training_checkpoint_with_its_arguments(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    assert torch.equal(read_tensors(tmp_path / "a.pth")["a"], torch.ones(2))
    torch.save({"model": {"a": torch.ones(2)}, "args": Path("a")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds more than tensors"):
        read_tensors(tmp_path / "a.pth")


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{"lr": 1}], dtype=object))
    with pytest.raises(UserError, match=r"a.npz cannot be read as weights: it holds more than tensors"):
        read_tensors(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"b.npz cannot be read as weights: it is damaged or incomplete"):
        read_tensors(tmp_path / "b.npz")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(2), {1: torch.ones(2)}, {"state_dict": {"a": 1}}])
def test_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a.pth holds no state dict: a table from names to tensors is needed\.$"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_wrapped_state_dict(key: str, tmp_path: Path) -> None:
    torch.save({key: {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pth")
    assert list(read_tensors(tmp_path / "a.pth")) == ["a"]


@pytest.mark.parametrize("legacy", [True, False])
def test_truncated_pth(legacy: bool, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(300, 300)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"it is damaged or incomplete; get it again"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "target", ["../secret.safetensors", "/etc/passwd", "..", "folder/a.safetensors", "a.safetensors.index.json"]
)
def test_index_that_points_elsewhere(target: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "secret.safetensors", {"a": torch.ones(1)}, {})
    index = tmp_path / "model" / "a.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(
        UserError, match=r"points to .*, which is no file of tensors beside it: it cannot be trusted\.$"
    ):
        read_tensors(index)


@pytest.mark.parametrize("index", [{}, {"weight_map": [1]}, {"weight_map": {"a": 3}}])
def test_garbled_index(index: Any, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"has no table weight_map from tensors to files: .*\.$"):
        shards(tmp_path / "a.index.json")


def test_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    with pytest.raises(UserError, match=r"b.safetensors does not exist: the model's tensors should be there\.$"):
        read_tensors(tmp_path / "a.index.json")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own error is told as what it is: the caller's atomic folder makes a sentence of it."""

    def full(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vitrail.weights.store.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
    assert caught.value.errno == 28


def test_a_file_closed_to_us_is_not_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> None:
        raise FileNotFoundError(f"No such file or directory: {path}")  # safetensors' answer to EACCES

    monkeypatch.setattr(store, "load_file", closed)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="may not be read: check its permissions"):
        store.read_tensors(tmp_path / "model.safetensors")
