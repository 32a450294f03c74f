"""On a par with Google's own code: its logits for toy checkpoints, and its two layouts of names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrail.config import EncoderConfig, HeadConfig, ModelCard, Preprocessing, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.weights.dialects import written
from vitrail.weights.load import load_weights

GOLDEN = ["google-vit-toy", "google-vit-toy-gap-prelogits", "google-hybrid-toy"]
TANH = EncoderConfig(layers=2, width=24, heads=3, mlp_width=40, mlp="gelu-tanh")


@pytest.mark.parametrize("which", GOLDEN)
def test_googles_logits(which: str, ours: Any, apart: Any) -> None:
    folder = Path(os.environ.get("VITRAIL_DATA", "")) / "golden"
    if not (folder / f"{which}.npz").is_file():
        pytest.skip("VITRAIL_DATA names no folder with golden/ of Google's toy checkpoints")
    with np.load(folder / f"{which}.expected.npz") as expected:
        images, logits = torch.from_numpy(expected["images"]), torch.from_numpy(expected["logits"])
    images = images.permute(0, 3, 1, 2)  # (B, H, W, C) there
    size = (images.shape[2], images.shape[3])
    loaded = load_weights(folder / f"{which}.npz", image_size=size)
    assert loaded.card.architecture.image_size == size
    assert {fate.what for fate in loaded.report} == {"loaded"}
    with torch.no_grad():
        assert apart(ours(loaded)(images), logits) <= 1e-5


def _saved(path: Path, randomised: Any, config: ViTConfig) -> dict[str, Any]:
    tensors = dict(randomised(build(config)).state_dict())
    written("google").write(ModelCard(config, Preprocessing(config.image_size)), tensors, path)
    with np.load(path) as arrays:
        return dict(arrays)


def test_both_layouts_of_names(tmp_path: Path, randomised: Any) -> None:
    config = ViTConfig(TANH, patch=(8, 8), image_size=(32, 32), head=HeadConfig(classes=3))
    published = _saved(tmp_path / "a.npz", randomised, config)
    names = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0", "LayerNorm_2": "LayerNorm_1"}
    names |= {"MlpBlock_3": "MlpBlock_0"}
    today = {}
    for name, array in published.items():
        for old, new in names.items():
            name = name.replace(old, new)
        today[name] = array
    np.savez(tmp_path / "b.npz", **today)
    first, second = load_weights(tmp_path / "a.npz"), load_weights(tmp_path / "b.npz")
    assert first.card.architecture == second.card.architecture
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_a_grid_that_is_no_square_is_asked_for(tmp_path: Path, randomised: Any) -> None:
    config = ViTConfig(TANH, patch=(8, 8), image_size=(16, 48), head=HeadConfig(classes=3))
    _saved(tmp_path / "a.npz", randomised, config)
    for wrong in (None, (32, 32)):
        with pytest.raises(UserError, match=r"positions for 12 patches, which is no square, .* pass the image size"):
            load_weights(tmp_path / "a.npz", image_size=wrong)
    assert load_weights(tmp_path / "a.npz", image_size=(16, 48)).card.architecture.grid == (2, 6)


def test_an_incomplete_file(tmp_path: Path, randomised: Any) -> None:
    config = ViTConfig(TANH, patch=(8, 8), image_size=(16, 16))
    arrays = _saved(tmp_path / "a.npz", randomised, config)
    for lacking in ("embedding/kernel", "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"):
        np.savez(tmp_path / "b.npz", **{name: array for name, array in arrays.items() if name != lacking})
        with pytest.raises(UserError, match=f"b.npz lacks the tensor {lacking}: it is incomplete"):
            load_weights(tmp_path / "b.npz")
    transposed = {**arrays, "embedding/kernel": arrays["embedding/kernel"].transpose(3, 0, 1, 2)}
    np.savez(tmp_path / "c.npz", **transposed)
    with pytest.raises(UserError):
        load_weights(tmp_path / "c.npz", image_size=(16, 16))
