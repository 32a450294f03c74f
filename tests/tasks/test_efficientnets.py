"""An EfficientNet is trained, kept, read, fine-tuned and judged like any other model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vitrail
from tests.tasks.shades import write_shades
from vitrail import efficientnet
from vitrail.config import ModelCard, Preprocessing, architecture
from vitrail.errors import UserError
from vitrail.record import from_dict, to_dict
from vitrail.runtime.engines import engine
from vitrail.runtime.plan import Runtime
from vitrail.settings import FinetuneSettings
from vitrail.tasks.dry_run import plan
from vitrail.tasks.show import show

NAME = "EfficientNet-B0"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve dark pictures and twelve light ones."""
    return write_shades(tmp_path_factory.mktemp("efficientnets"), 12, side=32)


@pytest.fixture(autouse=True, scope="module")
def _small() -> object:
    """B0 a third as wide and deep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(efficientnet.SCALED, "B0", (0.3, 0.3, 224, 0.0))
        yield


def _trained(photos: Path, out: Path, **more: object) -> Path:
    options: dict[str, object] = {
        "objective": "supervised", "architecture": NAME, "steps": 60, "batch_size": 8, "learning_rate": 1e-2,
        "tuning": {"mixing": 0.0, "operations": 0, "erase": 0.0}, "drop_path": 0.0, "quiet": True,
    }  # fmt: skip
    vitrail.pretrain(photos, out, **{**options, **more})  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def trained(photos: Path, _small: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(photos, tmp_path_factory.mktemp("efficientnets-run") / "run")


def test_it_is_trained_and_its_folder_says_what_it_is(trained: Path, photos: Path) -> None:
    card = json.loads((trained / "model" / "config.json").read_text())
    assert card["architecture"]["kind"] == "efficientnet"
    assert card["architecture"]["image_size"] == [32, 32]
    model = vitrail.load(trained, quiet=True)
    buffers = dict(model.model.named_buffers())
    assert buffers["trunk.0.1.num_batches_tracked"].dtype == torch.int64
    assert buffers["trunk.0.1.num_batches_tracked"] == 60
    assert model.evaluate(photos).evaluation.top1 > 0.9
    rows = dict(show(str(trained)).rows())
    assert rows["blocks"].startswith("1-1-1-1-1-2-1, inverted bottlenecks")
    assert rows["map"].startswith("1x1 of")


def test_it_goes_on_where_it_stopped(photos: Path, trained: Path, tmp_path: Path) -> None:
    """Statistics are part of a checkpoint: in two goes the same numbers come out as in one."""

    class Killed(BaseException):
        pass

    from vitrail.tasks import pretrain_run

    usual = pretrain_run.train

    def stopped(*words: object, tell: object, **named: object) -> None:
        def told(step: object) -> None:
            if step.done == 17:  # type: ignore[attr-defined]
                raise Killed

        usual(*words, tell=told, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_run, "train", stopped)
        with pytest.raises(Killed):
            _trained(photos, tmp_path / "run", checkpoint_every=10)
    _trained(photos, tmp_path / "run", checkpoint_every=10)
    one, other = (vitrail.load(place, quiet=True).model.state_dict() for place in (trained, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["full", "layers:2", "probe", "knn"])
def test_every_method_that_needs_no_tokens(method: str, trained: Path, photos: Path, tmp_path: Path) -> None:
    epochs = None if method in ("probe", "knn") else 1
    found = vitrail.finetune(photos, tmp_path / "run", weights=trained, method=method, epochs=epochs, quiet=True)
    assert found.evaluation.top1 > 0.7
    if method != "knn":
        assert vitrail.load(tmp_path / "run", quiet=True).predict(photos)[0].labels
    if method == "layers:2":
        before, after = (vitrail.load(place, quiet=True).model.state_dict() for place in (trained, tmp_path / "run"))
        assert torch.equal(before["trunk.0.1.running_mean"], after["trunk.0.1.running_mean"])
        assert not torch.equal(before["trunk.8.1.running_mean"], after["trunk.8.1.running_mean"])


def test_what_batchnorm_cannot_do_is_said_first(trained: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set accumulate to 1"):
        vitrail.finetune(photos, tmp_path / "run", weights=trained, method="full", tuning={"accumulate": 2}, quiet=True)
    with pytest.raises(UserError, match="set accumulate to 1"):
        _trained(photos, tmp_path / "run", tuning={"accumulate": 2})
    assert not (tmp_path / "run").exists()


def test_a_plan(trained: Path, photos: Path) -> None:
    found = plan(FinetuneSettings(data=str(photos), weights=str(trained), method="full", epochs=1), quiet=True)
    assert found.memory_bytes > 0
    assert found.trained_parameters == sum(p.numel() for p in vitrail.load(trained, quiet=True).model.parameters())


@pytest.mark.parametrize("way", ["onnx", "openvino", "eager"])
def test_engines_and_other_resolutions(way: str, trained: Path) -> None:
    larger = vitrail.load(trained, image_size=64, quiet=True)
    pictures = torch.randn(2, 3, 64, 64)
    made = engine(larger.model, Runtime(way), pictures)  # type: ignore[arg-type]
    torch.testing.assert_close(made(pictures), larger.model.features(pictures), atol=1e-4, rtol=1e-3)


def test_a_card_is_read_back() -> None:
    card = ModelCard(architecture("EfficientNet-B3"), Preprocessing((300, 300)))
    assert from_dict(ModelCard, json.loads(json.dumps(to_dict(card)))) == card
