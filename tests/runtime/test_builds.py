"""What engines are built is kept whole or not at all, and taken again only as it was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runtime.test_engines import PLAIN, _model, _pictures, _way
from vitrail.errors import UserError
from vitrail.runtime import engines, onnxruntime, openvino
from vitrail.runtime.engines import Rejected, engine
from vitrail.runtime.in_torch import InTorch
from vitrail.runtime.plan import BUILDS

OPENVINO = _way("openvino:fp32")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were built in."""
    found: list[Path] = []
    usual = openvino.build

    def follow(module: Any, example: Tensor, folder: Path, *more: Any) -> None:
        found.append(folder)
        usual(module, example, folder, *more)

    monkeypatch.setattr(openvino, "build", follow)
    return found


def _damaged(folder: Path) -> None:
    (folder / "model.xml").write_text("<net")


def _zeros(folder: Path) -> None:
    """As many bytes, which the library reads without a word."""
    path = folder / "model.bin"
    path.write_bytes(bytes(path.stat().st_size))


def _cut(folder: Path) -> None:
    os.truncate(folder / "model.bin", 100)


def _unsaid(folder: Path) -> None:
    (folder / "build.json").write_text("{}")


@pytest.mark.parametrize("damage", [_damaged, _zeros, _cut, _unsaid])
def test_a_build_is_made_once_and_again_if_it_is_damaged(
    damage: Callable[[Path], None], tmp_path: Path, built: list[Path]
) -> None:
    model, images = _model(PLAIN), _pictures(PLAIN)
    first = engine(model, OPENVINO, None, tmp_path)(images)
    assert torch.equal(engine(model, OPENVINO, None, tmp_path)(images), first)
    assert len(built) == 1
    (folder,) = (tmp_path / BUILDS).iterdir()
    damage(folder)
    assert torch.equal(engine(model, OPENVINO, None, tmp_path)(images), first)
    assert len(built) == 2


def test_another_model_or_other_ranges_are_another_build(tmp_path: Path, built: list[Path]) -> None:
    model, images = _model(PLAIN), _pictures(PLAIN, 8)
    first = engine(model, OPENVINO, None, tmp_path)(images)
    model.norm.bias.data += 1
    assert not torch.allclose(engine(model, OPENVINO, None, tmp_path)(images), first)
    assert len(built) == 2
    int8 = _way("openvino:int8")
    for pictures, count in ((images, 3), (images, 3), (images * 2, 4), (None, 4)):
        engine(model, int8, pictures, tmp_path)
        assert len(built) == count


@pytest.mark.parametrize("what", ["processor", "versions"])
def test_another_machine_or_library_is_another_build(
    what: str, tmp_path: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(PLAIN)
    engine(model, OPENVINO, None, tmp_path)
    usual = getattr(engines, what)()
    monkeypatch.setattr(engines, what, lambda: "another" if what == "processor" else {**usual, "openvino": "1.0"})
    engine(model, OPENVINO, None, tmp_path)
    assert len(built) == 2
    monkeypatch.setattr(engines, what, lambda: usual)
    engine(model, OPENVINO, None, tmp_path)
    assert len(built) == 2, "the first is still there"


def test_nothing_is_kept_before_it_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        assert not any(path.name.startswith("openvino") for path in (tmp_path / BUILDS).iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine(_model(PLAIN), OPENVINO, None, tmp_path)
    assert not list((tmp_path / BUILDS).iterdir())


def test_a_build_stays_beside_another_of_other_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, int8 = _model(PLAIN), _pictures(PLAIN, 8), _way("openvino:int8")
    first = engine(model, int8, images, tmp_path)(images)
    own = engines.with_ranges(int8, images)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(openvino, "build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine(model, int8, images * 2, tmp_path)
        engine(model, int8, None, tmp_path)
    assert not torch.equal(engine(model, int8, images * 2, tmp_path)(images), first)
    assert torch.equal(engine(model, own, None, tmp_path)(images), first)
    assert len(list((tmp_path / BUILDS).iterdir())) == 2


def test_batches_that_a_build_was_not_checked_in_are_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[int]]] = []
    usual = engines.check

    def follow(made: Any, module: Any, runtime: Any, pictures: Tensor, sizes: Any) -> None:
        seen.append((runtime.name, list(sizes)))
        usual(made, module, runtime, pictures, sizes)

    monkeypatch.setattr(engines, "check", follow)
    model = _model(PLAIN)
    for way, size in (("fp32", 4), ("fp32", 4), ("fp32", 8), ("fp32", 8), ("bf16", 8), ("bf16", 8)):
        engine(model, _way(f"openvino:{way}", batch_size=size), _pictures(PLAIN, 8), tmp_path)
    assert [sizes for _, sizes in seen] == [[1, 4], [8], [1, 8]]
    assert len(list((tmp_path / BUILDS).iterdir())) == 1, "fp32 and bf16 are two ways to run one graph"
    monkeypatch.setitem(engines.BOUNDS, "fp32", 0.0)
    with pytest.raises(Rejected, match="in batches of 2"):
        engine(model, _way("openvino:fp32", batch_size=2), _pictures(PLAIN, 8), tmp_path)


def test_of_two_that_build_the_second_takes_what_the_first_has_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = _model(PLAIN), _pictures(PLAIN)
    usual = openvino.build

    def slow(module: Any, example: Tensor, folder: Path, *more: Any) -> None:
        monkeypatch.setattr(openvino, "build", usual)
        engine(model, OPENVINO, None, tmp_path)
        usual(module, example, folder, *more)

    monkeypatch.setattr(openvino, "build", slow)
    with torch.no_grad():
        truth = model.features(images)
    assert torch.allclose(engine(model, OPENVINO, None, tmp_path)(images), truth, atol=2e-4)
    assert len(list((tmp_path / BUILDS).iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="rights are POSIX's")
def test_builds_of_a_folder_that_cannot_be_written_are_taken_and_others_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[Path]
) -> None:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    model, folder = _model(PLAIN), tmp_path / "model"
    folder.mkdir()
    engine(model, OPENVINO, None, folder)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: folder not in (path, *path.parents) and allowed(path, mode))
    engine(model, OPENVINO, None, folder)
    assert len(built) == 1
    model.norm.bias.data += 1
    for _ in range(2):
        engine(model, OPENVINO, None, folder)
    assert len(built) == 2
    assert len(list((tmp_path / "cache" / BUILDS).iterdir())) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / BUILDS).write_text("a file where builds should go")
    engine(model, OPENVINO, None, tmp_path / "other")
    assert len(built) == 2, "the cache has it"


def test_what_killed_processes_left_is_cleared(tmp_path: Path, built: list[Path]) -> None:
    model = _model(PLAIN)
    engine(model, OPENVINO, None, tmp_path)
    (folder,) = (tmp_path / BUILDS).iterdir()
    old, young = (tmp_path / BUILDS / f".{folder.name}.{word}.partial" for word in ("old", "young"))
    for path in (old, young):
        path.mkdir()
    os.utime(old, (0, 0))
    _damaged(folder)
    engine(model, OPENVINO, None, tmp_path)
    assert not old.exists()
    assert young.is_dir(), "which another process may be building in"


@pytest.mark.parametrize("way", ["onnx:fp32", "openvino:fp32", "compiled:fp32"])
def test_a_library_that_fails_at_the_first_batch_is_a_sentence(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("Compiling\nfatal error: Python.h: no such file\nSet A_VARIABLE=1 to hear more")

    for made in (onnxruntime.ONNXRuntime, openvino.OpenVINO, InTorch):
        monkeypatch.setattr(made, "_features", failing)
    words = rf"{way} does not run this model \(fatal error: Python.h: no such file\): choose another way"
    with pytest.raises(UserError, match=words):
        engine(_model(PLAIN), _way(way), None, tmp_path)
    assert not list(tmp_path.rglob("build.json"))


@pytest.mark.parametrize("way", ["onnx:fp32", "openvino:fp32"])
def test_a_full_disk_is_named(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    library = onnxruntime if way.startswith("onnx") else openvino
    monkeypatch.setattr(library, "build", full)
    with pytest.raises(UserError, match="cannot be built for this model"):
        engine(_model(PLAIN), _way(way), None, tmp_path)
    usage = type("Usage", (), {"free": 2**20 + 1000})  # less than the weights: what it had written of them is gone
    monkeypatch.setattr(engines.shutil, "disk_usage", lambda _: usage)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="The disk is full while writing"):
        engine(_model(PLAIN), _way(way), None, tmp_path)


def test_a_rejected_build_is_not_tried_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = openvino.OpenVINO._features
    monkeypatch.setattr(openvino.OpenVINO, "_features", lambda self, images: usual(self, images) + 1)
    for _ in range(2):
        with pytest.raises(Rejected):
            engine(_model(PLAIN), OPENVINO, None, tmp_path)
