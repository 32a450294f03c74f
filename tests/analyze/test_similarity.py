"""Linear CKA: its invariances, the formulas written out, and an estimate that batches do not shift."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch import Tensor

from vitrail.analyze.canvas import inline_svg
from vitrail.analyze.similarity import LayerSimilarity, MinibatchCKA, cka, compare_layers, gram
from vitrail.analyze.stream import observe
from vitrail.config import EncoderConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.encoder import Trace
from vitrail.model.vision import VisionTransformer

Images = Callable[[VisionTransformer, int], Tensor]


def hsic_unbiased(K: np.ndarray, L: np.ndarray) -> float:
    """HSIC_1 as 2010.15327 writes it, from whole Gram matrices."""
    n = len(K)
    K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(len(K))
    total = (
        np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ K @ L @ one)
    )
    return float(total / (n * (n - 3)))


def cka_unbiased(x: np.ndarray, y: np.ndarray) -> float:
    K, L = x @ x.T, y @ y.T
    return hsic_unbiased(K, L) / np.sqrt(hsic_unbiased(K, K) * hsic_unbiased(L, L))


def features(n: int, width: int, seed: int, shared: np.ndarray | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, width))
    return noise if shared is None else noise + 1.5 * shared @ rng.standard_normal((shared.shape[1], width))


# --- of two matrices ---


@pytest.mark.parametrize(("n", "width"), [(9, 30), (40, 6)])
def test_cka_does_not_see_rotation_scale_and_shift(n: int, width: int) -> None:
    x = features(n, width, 0)
    y = -3 * x @ ortho_group.rvs(width, random_state=1) + features(1, width, 2)
    assert cka(x, y) == pytest.approx(1, abs=1e-12)
    assert cka(x, x[:, : width // 2]) < 0.99


@pytest.mark.parametrize(("p", "q"), [(3, 5), (3, 50), (50, 60), (20, 20)])
def test_cka_is_hsic_with_a_centring_matrix(p: int, q: int) -> None:
    n = 20
    shared = features(n, 2, 9)
    x, y = features(n, p, 1, shared) + 4, features(n, q, 2, shared) - 2
    H = np.eye(n) - 1 / n
    K, L = H @ x @ x.T @ H, H @ y @ y.T @ H
    expected = np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L))
    assert cka(x, y) == pytest.approx(expected, abs=1e-12)
    assert cka(y, x) == pytest.approx(expected, abs=1e-12)


def test_cka_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="5 and 6 rows"):
        cka(np.ones((5, 2)), np.ones((6, 2)))
    with pytest.raises(UserError, match="same for every image"):
        cka(np.ones((5, 2)), features(5, 2, 0))


# --- the unbiased estimator ---


@given(st.integers(4, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_products_of_grams_are_the_estimator(n: int, p: int, q: int, seed: int) -> None:
    x, y = features(n, p, seed), features(n, q, seed + 100)
    K, L = gram(torch.from_numpy(x)).numpy(), gram(torch.from_numpy(y)).numpy()
    expected = hsic_unbiased(x @ x.T, y @ y.T)
    scale = np.sqrt(hsic_unbiased(x @ x.T, x @ x.T) * hsic_unbiased(y @ y.T, y @ y.T))
    assert (K * L).sum() / (n * (n - 3)) == pytest.approx(expected, abs=1e-4 * scale + 1e-9)


def test_what_all_images_share_is_not_seen_in_float32_either() -> None:
    x = torch.from_numpy(features(8, 60, 0)).float()
    far = 1000 * torch.ones(1, 60)
    torch.testing.assert_close(gram(x + far), gram(x), rtol=0, atol=0.02)
    assert not gram(far.expand(8, -1)).any()


def streamed(layers: Sequence[np.ndarray], sizes: list[int]) -> LayerSimilarity:
    """The finding for features (n, D) of each layer, one token an image, cut into batches."""
    encoder = EncoderConfig(layers=len(layers), width=24, heads=3, mlp_width=8)
    found = MinibatchCKA(ViTConfig(encoder, patch=(4, 4), image_size=(8, 8)))
    parts = [torch.from_numpy(x).float()[:, None].split(sizes) for x in layers]
    for batch in zip(*parts, strict=True):
        for layer, z in enumerate(batch):
            found.receive("block", layer, z)
        found.close()
    return found.finding()


def test_batches_do_not_shift_the_estimate() -> None:
    shared = features(512, 4, 0)
    layers = [features(512, 24, 1, shared), features(512, 24, 2, shared), features(512, 24, 3)]
    whole = streamed(layers, [512]).similarity
    expected = [[cka_unbiased(x, y) for y in layers] for x in layers]
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(streamed(layers, [16] * 32).similarity, whole, atol=0.03)
    np.testing.assert_allclose(streamed(layers, [100, 5, 200, 207]).similarity, whole, atol=0.03)
    assert whole[0, 1] > 0.3
    # Independent features of few images: the biased one takes them to be alike.
    assert abs(streamed(layers, [8] * 64).similarity[0, 2]) < 0.02
    assert np.mean([cka(x, y) for x, y in zip(*(np.split(layers[i], 64) for i in (0, 2)), strict=True)]) > 0.5


def test_small_batches_are_left_out_and_counted() -> None:
    layers = [features(19, 24, 1), features(19, 24, 2)]
    found = streamed(layers, [8, 3, 8])
    assert (found.images, found.skipped) == (16, 3)
    without = streamed([np.delete(x, [8, 9, 10], axis=0) for x in layers], [8, 8])
    assert np.array_equal(found.similarity, without.similarity)
    with pytest.raises(UserError, match="4 images or more"):
        streamed(layers, [3] * 6 + [1])


# --- through models ---


def block_outputs(model: VisionTransformer, images: Tensor) -> list[np.ndarray]:
    seen: list[Tensor] = []
    model.encode(images, 1, Trace(lambda kind, layer, z: seen.append(z), blocks=range(3)))
    return [z.detach().flatten(1).double().numpy() for z in seen]


def test_the_stream_over_a_model(images: Images, model: VisionTransformer) -> None:
    batch, found = images(model, 12), MinibatchCKA(model.config)
    observe(lambda x, trace: model.encode(x, 1, trace), [batch], [found])
    layers = block_outputs(model, batch)
    expected = [[cka_unbiased(x, y) for y in layers] for x in layers]
    np.testing.assert_allclose(found.finding().similarity, expected, atol=1e-4)


def test_half_precision_of_the_model_is_not_that_of_the_products(images: Images, model: VisionTransformer) -> None:
    seen: list[Tensor] = []

    class Keeping(MinibatchCKA):
        def receive(self, kind: str, layer: int, values: Tensor) -> None:
            seen.append(values.detach().clone())
            super().receive(kind, layer, values)  # type: ignore[arg-type]

    def forward(x: Tensor, trace: Trace) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return model.encode(x, 1, trace)

    found = Keeping(model.config)
    observe(forward, [images(model, 8)], [found])
    layers = [z.flatten(1).double().numpy() for z in seen]
    expected = [[cka_unbiased(x, y) for y in layers] for x in layers]
    np.testing.assert_allclose(found.finding().similarity, expected, atol=1e-4)


def test_two_models_on_the_same_images(images: Images, model: VisionTransformer) -> None:
    batches = [*images(model, 14).split(6)]  # 6, 6 and 2

    def forward(x: Tensor, trace: Trace) -> object:
        return model.encode(x, 1, trace)

    found = MinibatchCKA(model.config)
    observe(forward, batches, [found])
    alike = compare_layers((forward, forward), (3, 3), zip(batches, batches, strict=True))
    np.testing.assert_allclose(alike.similarity, found.finding().similarity, atol=1e-12)
    assert (alike.images, alike.skipped) == (12, 2)
    # Another model, fed the images at another size.
    other = build(ViTConfig(EncoderConfig(2, 8, 2, 8), patch=(4, 4), image_size=(8, 8)))
    small = [batch[:, :, :8, :8] for batch in batches]
    pairs = zip(batches, small, strict=True)
    found = compare_layers((forward, lambda x, trace: other.encode(x, 1, trace)), (3, 2), pairs, ("A", "B"))
    assert found.similarity.shape == (3, 2)
    assert np.abs(found.similarity).max() < 1
    assert [found.plot().axes[0].get_ylabel(), found.plot().axes[0].get_xlabel()] == ["A", "B"]


def test_what_is_quoted() -> None:
    shared = features(20, 3, 0)
    layers = [features(20, 24, 1, shared), features(20, 24, 2, shared), np.ones((20, 24))]
    result = streamed(layers, [10, 10])
    assert np.allclose(np.diagonal(result.similarity)[:2], 1)
    assert np.isnan(result.similarity[2]).all()
    table = result.table()
    assert {len(column) for column in table.values()} == {9}
    assert (table["layer"][1], table["other_layer"][1], table["cka"][1]) == (1, 2, result.similarity[0, 1])
    summary = result.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["least"] == result.similarity[0, 1]
    assert summary["next_layer"] == [result.similarity[0, 1], None]
    assert result.plot().axes[0].get_title("left") == "Similarity of layers"
    assert inline_svg(result.plot(), "similarity").startswith("<svg")  # nothing in it warns when it is drawn
    assert LayerSimilarity(np.eye(20), 4, 0).plot().axes
