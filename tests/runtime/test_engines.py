"""Engines give what the model gives, whatever the model is made of; one that does not is refused."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, ResNetConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer
from vitrail.resnet import resnet
from vitrail.runtime import engines, openvino
from vitrail.runtime.engines import BOUNDS, MERGED, Rejected, available, engine
from vitrail.runtime.merging import Merged
from vitrail.runtime.plan import BUILDS, Runtime
from vitrail.runtime.sizes import in_sizes, sizes_up_to

PLAIN = ViTConfig(EncoderConfig(2, 24, 3, 48), (8, 8), (16, 24), head=HeadConfig(classes=3))
MODELS = {
    "plain": PLAIN,
    "scaled, registers, tanh": replace(
        PLAIN,
        tokens=("class", "register", "register"),
        encoder=replace(PLAIN.encoder, layer_scale=0.5, mlp="gelu-tanh"),
    ),
    "swiglu, two layers, mean": replace(
        PLAIN, encoder=replace(PLAIN.encoder, mlp="swiglu"), head=HeadConfig(("class", "mean"), 2)
    ),
    "sincos, attention pooling": replace(PLAIN, position=PositionConfig("sincos-2d"), head=HeadConfig(("map",))),
    "rope": replace(PLAIN, position=PositionConfig("rope-2d"), encoder=replace(PLAIN.encoder, heads=2)),
    "relative": replace(PLAIN, position=PositionConfig("relative-2d", clip=(1, 1))),
    "2-D, every layer": replace(PLAIN, position=PositionConfig("learned-2d", place="every-layer")),
}
GRAPHS = ("onnx:fp32", "openvino:fp32")
CASES = [(kind, "openvino:fp32") for kind in MODELS] + [(kind, "onnx:fp32") for kind in ("plain", "relative")]


def _model(config: ViTConfig) -> VisionTransformer:
    model = build(config)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.2
    return model.eval()


def _pictures(config: ViTConfig, count: int = 5) -> Tensor:
    return torch.randn(count, config.channels, *config.image_size, generator=torch.Generator().manual_seed(1))


def _way(name: str, **more: Any) -> Runtime:
    backend, precision = name.split(":")
    return Runtime(backend, precision, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_graphs_give_what_the_model_gives_in_batches_of_any_size(kind: str, way: str, tmp_path: Path) -> None:
    model = _model(MODELS[kind])
    made = engine(model, _way(way, batch_size=4), None, tmp_path)
    for count in (1, 3, 4, 9):
        images = _pictures(model.config, count)
        with torch.no_grad():
            truth = model.features(images)
        assert torch.allclose(made(images), truth, atol=2e-4), count


@given(st.integers(1, 200), st.integers(1, 64))
def test_a_batch_is_run_as_equal_ones_that_share_all_threads(pictures: int, threads: int) -> None:
    count = openvino.streams(pictures, threads)
    assert pictures % count == threads % count == 0
    assert count == 1 or pictures // count >= openvino.ALONE
    assert count == threads or pictures % threads or pictures < openvino.ALONE * threads, "where it can be, one each"


def test_a_batch_that_is_run_as_several_gives_what_the_model_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "cores", lambda: 2)
    model, images = _model(PLAIN), _pictures(PLAIN, 24)
    made = engine(model, _way("openvino:fp32", batch_size=16, threads=2), None, tmp_path)
    with torch.no_grad():
        assert torch.allclose(made(images), model.features(images), atol=2e-4)
    assert isinstance(made, openvino.OpenVINO)
    assert {size: len(requests) for size, requests in made.compiled.items()} == {8: 2, 16: 2}


def test_whoever_is_interrupted_waits_for_all_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They read the pictures where they are, which would be gone."""

    class Request:
        def __init__(self, fault: bool) -> None:
            self.fault, self.did = fault, list[str]()

        def start_async(self, *_: Any, **__: Any) -> None:
            self.did.append("started")

        def wait(self) -> None:
            self.did.append("waited")
            if self.fault:
                raise KeyboardInterrupt

    images = _pictures(PLAIN, 8)
    made = engine(_model(PLAIN), _way("openvino:fp32", batch_size=8), None, tmp_path)
    assert isinstance(made, openvino.OpenVINO)
    requests = [Request(False), Request(True)]
    monkeypatch.setitem(made.compiled, 8, requests)
    with pytest.raises(KeyboardInterrupt):
        made(images)
    assert [request.did for request in requests] == [["started", "waited"]] * 2


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in ("rope", "relative")])
@pytest.mark.parametrize("way", ["eager:fp32", *GRAPHS])
def test_merged_graphs_give_what_merged_models_give(way: str, kind: str, tmp_path: Path) -> None:
    model, images = _model(MODELS[kind]), _pictures(MODELS[kind])
    with torch.no_grad():
        truth = Merged(model, (2, 1))(images)
    assert torch.allclose(engine(model, _way(way, merging=(2, 1)), None, tmp_path)(images), truth, atol=2e-4)


@pytest.mark.timeout(600)
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler here")
@pytest.mark.parametrize("merging", [(), (2, 1)])
def test_compiled_by_inductor_it_gives_what_the_model_gives(merging: tuple[int, ...]) -> None:
    """Really compiled, for the sizes that it is checked in: a picture alone, and a full batch."""
    model, images = _model(PLAIN), _pictures(PLAIN)
    with torch.no_grad():
        truth = Merged(model, merging)(images) if merging else model.features(images)
    made = engine(model, _way("compiled:fp32", merging=merging, batch_size=2))
    assert torch.allclose(made(images), truth, atol=2e-4)


def test_merged_graphs_in_eight_bits_are_near(tmp_path: Path) -> None:
    model, images = _model(replace(PLAIN, encoder=replace(PLAIN.encoder, width=48))), _pictures(PLAIN, 16)
    with torch.no_grad():
        truth = Merged(model, (2, 1))(images)
    for way in ("onnx:int8", "openvino:int8"):
        found = engine(model, _way(way, merging=(2, 1)), images, tmp_path)(images)
        apart = float(((found - truth).norm(dim=-1) / truth.norm(dim=-1)).mean())
        assert 1e-4 < apart < BOUNDS["int8"] + MERGED[1], way


def test_more_queries_than_a_block_are_built_too(tmp_path: Path) -> None:
    config = replace(MODELS["relative"], image_size=(8 * 27, 8 * 27))  # 729 patches
    model, images = _model(config), _pictures(config, 1)
    with torch.no_grad():
        truth = model.features(images)
    assert torch.allclose(engine(model, _way("openvino:fp32"), images, tmp_path)(images), truth, atol=1e-4)


@pytest.mark.parametrize("way", ["onnx:int8", "openvino:int8"])
def test_convolutions_are_not_called_eight_bits(way: str) -> None:
    model = build(resnet("R1-1x0.5", (32, 32), 3))
    with pytest.raises(UserError, match="convolutions are not run in int8"):
        engine(model, _way(way), torch.randn(2, 3, 32, 32))


def test_eight_bits_are_near_and_ranges_need_pictures(tmp_path: Path) -> None:
    model, images = _model(replace(PLAIN, encoder=replace(PLAIN.encoder, width=48))), _pictures(PLAIN, 16)
    for way in ("onnx:int8", "openvino:int8"):
        if way == "openvino:int8":
            with pytest.raises(UserError, match="run vitrail tune with labelled pictures first"):
                engine(model, _way(way), None, tmp_path)
        made = engine(model, _way(way), images, tmp_path)
        with torch.no_grad():
            truth = model.features(images)
        apart = float(((made(images) - truth).norm(dim=-1) / truth.norm(dim=-1)).mean())
        assert 1e-4 < apart < BOUNDS["int8"], "quantised, and not far"
        assert torch.equal(engine(model, _way(way), None, tmp_path)(images), made(images)), "the build is taken again"


@pytest.mark.parametrize(
    ("way", "fault", "words"),
    [
        ("openvino:fp32", lambda found: found * 1.02, r"features that are 0\.02 of their length from"),
        ("openvino:fp32", lambda found: found * float("nan"), "nan of their length"),
        ("openvino:fp32", lambda found: found * (len(found) > 1), r"1 of their length .* in batches of 1,"),
        ("openvino:fp32", lambda found: found * (float("nan") if len(found) > 8 else 1), "nan .* in batches of 32,"),
        (
            "openvino:int8",
            lambda found: torch.cat([found[:1] * -0.9, found[1:]]) if len(found) > 1 else found,
            r"for a picture that are 1\.9",
        ),
        (
            "openvino:int8",
            lambda found: torch.cat([found[:-1], found[-1:] * 0]) if len(found) > 1 else found,
            r"for a picture that are 1 .* more than the 0\.75",
        ),
    ],
    ids=["a little off", "no numbers", "single pictures", "full batches", "one picture of many", "one of nothing"],
)
def test_a_backend_that_is_wrong_on_this_machine_is_rejected(
    way: str, fault: Callable[[Tensor], Tensor], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = openvino.OpenVINO._features
    monkeypatch.setattr(openvino.OpenVINO, "_features", lambda self, images: fault(usual(self, images)))
    with pytest.raises(Rejected, match=words):
        engine(_model(PLAIN), _way(way), _pictures(PLAIN, 8), tmp_path)
    assert not list((tmp_path / BUILDS).iterdir()), "nothing wrong is kept"


def test_a_picture_that_got_anothers_features_is_rejected_where_tokens_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = openvino.OpenVINO._features

    def swapped(self: Any, images: Tensor) -> Tensor:
        found = usual(self, images)
        return torch.cat([found[:1].roll(1, dims=-1) if len(found) > 1 else found[:1], found[1:]])

    monkeypatch.setattr(openvino.OpenVINO, "_features", swapped)
    with pytest.raises(Rejected, match="for a picture"):
        engine(_model(PLAIN), _way("openvino:int8", merging=(1, 0)), _pictures(PLAIN, 8), tmp_path)


def test_where_eight_bits_are_too_few_sensitive_layers_keep_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes: list[str] = []
    usual = openvino.build

    def follow(module: Any, example: Tensor, folder: Path, pictures: Tensor | None, sensitive: str = "") -> None:
        scopes.append(sensitive)
        usual(module, example, folder, pictures, sensitive)

    monkeypatch.setattr(openvino, "build", follow)
    monkeypatch.setitem(BOUNDS, "int8", 1e-9)
    with pytest.raises(Rejected):
        engine(_model(PLAIN), _way("openvino:int8"), _pictures(PLAIN, 8), tmp_path)
    assert scopes == list(openvino.SENSITIVE)


def test_the_sensitive_layers_are_then_not_quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, checks = engines.check, iter((True, False))

    def first_is_too_coarse(*what: Any) -> None:
        if next(checks):
            raise Rejected("too coarse")
        usual(*what)

    def in_eight_bits(folder: Path) -> int:
        graph = openvino._core().read_model(folder / openvino.GRAPH)
        constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
        return sum(node.get_element_type().get_type_name() == "i8" for node in constants)

    folders = tmp_path / "all", tmp_path / "but"
    for folder in folders:
        folder.mkdir()
    pictures = _pictures(PLAIN, 8)
    engine(_model(PLAIN), _way("openvino:int8"), pictures, folders[0])
    monkeypatch.setattr(engines, "check", first_is_too_coarse)
    engine(_model(PLAIN), _way("openvino:int8"), pictures, folders[1])
    (every,), (fewer,) = ((folder / BUILDS).iterdir() for folder in folders)
    assert in_eight_bits(every) - in_eight_bits(fewer) == PLAIN.layers, "the second layer of each MLP"
    assert in_eight_bits(fewer) > 0


def test_what_cannot_be_run_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(PLAIN)
    for way, words in (
        ("eager:int8", "PyTorch runs no model in int8"),
        ("onnx:bf16", "no bf16 on a processor"),
    ):
        with pytest.raises(UserError, match=words):
            engine(model, _way(way), _pictures(PLAIN))
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UserError, match=r"needs openvino: pip install 'vitrail\[fast\]'"):
        engine(model, _way("openvino:fp32"))
    relative = _model(MODELS["relative"])
    with pytest.raises(UserError, match="Tokens cannot be merged"):
        engine(relative, _way("openvino:fp32", merging=(1, 0)))


def test_the_hybrid_stem_too(tmp_path: Path) -> None:
    stem = ResNetConfig(layers=(1, 1), width=32)
    config = ViTConfig(EncoderConfig(1, 24, 3, 48), (1, 1), (32, 32), stem=stem)
    model = _model(config)
    images = _pictures(config, 2)
    with torch.no_grad():
        truth = model.features(images)
    assert torch.allclose(engine(model, _way("openvino:fp32"), None, tmp_path)(images), truth, atol=1e-3)


def test_what_can_be_tried_here() -> None:
    found = available(torch.device("cpu"))
    assert ("eager", "fp32") in found
    assert {("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8")} <= set(found)
    assert all(backend == "eager" for backend, _ in available(torch.device("meta")))


@pytest.mark.parametrize(("count", "most", "sizes"), [(1, 32, [1]), (5, 32, [8]), (9, 4, [4, 4, 1]), (7, 6, [6, 1])])
def test_batches_come_in_few_sizes(count: int, most: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def run(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.sum(dim=(1, 2, 3))[:, None]

    images = _pictures(PLAIN, count)
    assert torch.allclose(in_sizes(run, images, most), images.sum(dim=(1, 2, 3))[:, None])
    assert seen == sizes


@given(st.integers(1, 40))
def test_those_sizes_are_known_beforehand(most: int) -> None:
    seen: list[int] = []

    def run(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images

    for count in range(1, most + 1):
        in_sizes(run, torch.zeros(count, 1), most)
    assert tuple(sorted(set(seen))) == sizes_up_to(most)


@pytest.mark.parametrize(
    ("way", "sizes"),
    [("eager:fp32", ()), ("compiled:fp32", (1, 2, 3)), ("onnx:fp32", ()), ("openvino:fp32", (1, 2, 3))],
)
def test_an_engine_says_the_sizes_it_is_compiled_for(
    way: str, sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    assert engine(_model(PLAIN), _way(way, batch_size=3), None, tmp_path).sizes == sizes


@pytest.mark.parametrize("way", ["eager:fp32", "onnx:fp32"])
def test_batches_are_as_large_as_was_tuned(way: str, tmp_path: Path) -> None:
    made = engine(_model(PLAIN), _way(way, batch_size=3, threads=1000), None, tmp_path)
    seen: list[int] = []
    usual = made._features  # type: ignore[attr-defined]

    def follow(images: Tensor) -> Tensor:
        seen.append(len(images))
        found: Tensor = usual(images)
        return found

    made._features = follow  # type: ignore[attr-defined]
    assert len(made(_pictures(PLAIN, 7))) == 7
    assert seen == [3, 3, 1]


def test_every_engine_is_compiled_whatever_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the compiler all are versions of one function, and after some it would give up without a word."""
    seen: list[int] = []

    def compiled(module: Callable[[Tensor], Tensor], **_: Any) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            seen.append(torch._dynamo.config.recompile_limit)
            return module(images)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    with torch._dynamo.config.patch(recompile_limit=8):
        made = engine(_model(PLAIN), _way("compiled:fp32", batch_size=32))
        with ThreadPoolExecutor(1) as pool:  # each thread has settings of its own
            pool.submit(made, _pictures(PLAIN)).result()
    assert min(seen) >= 100, "a single picture and 2 to 32 of them are six versions, of each engine"


def test_compiled_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is compiled is inductor's business; that the answer is held against the model is ours."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda images: module(images) + 0.5)
    with pytest.raises(Rejected, match="compiled:fp32"):
        engine(_model(PLAIN), _way("compiled:fp32"))
    assert engines.CHECKED == 8


def test_ctrl_c_interrupts_after_engines_have_come_and_gone(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    openvino.build(module, torch.zeros(1, 3, 2, 2), tmp_path, None)
    first, second = (openvino.OpenVINO(tmp_path, "fp32", 1, 1) for _ in range(2))
    first(torch.zeros(1, 3, 2, 2))
    second(torch.zeros(1, 3, 2, 2))
    del first
    del second
    with pytest.raises(KeyboardInterrupt):  # and not a fault of the process
        signal.raise_signal(signal.SIGINT)
