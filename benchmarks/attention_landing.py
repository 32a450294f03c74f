"""Does attention land on the object?  ``VITRAIL_DATA=folder python -m benchmarks.attention_landing``

All 170 pictures of ``pennfudan``, squashed to 224 x 224; the masks of its pedestrians likewise, as the share of
each patch that they cover. Of each picture, how much of the class token's attention lies inside, and how much of
the area: rollout and the last layer (mean of heads) of ``saliency-s14``, of the same architecture with random
weights, and a Gaussian about the centre (standard deviation a quarter of the side, written down before the run).
Intervals: paired bootstrap over pictures, 95 %. About a minute on two cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vitrail
from benchmarks.results_file import record
from vitrail.analyze.attention import Rollout, to_patches
from vitrail.analyze.canvas import save
from vitrail.analyze.landing import central, landing
from vitrail.analyze.stream import Kind, Statistic, observe
from vitrail.config import Preprocessing
from vitrail.data.batches import batches
from vitrail.data.preprocess import preprocess
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "inspect" / "attention-landing.png"


class LastLayer(Statistic):
    """Keeps one layer's attention, mean over heads, until the next batch."""

    def __init__(self, layer: int) -> None:
        self.attention = [layer]
        self.weights = torch.empty(0)

    def receive(self, kind: Kind, layer: int, values: Tensor) -> None:
        """Attention weights (B, K, N, N)."""
        self.weights = values.mean(dim=1)


def class_maps(model: VisionTransformer, pictures: list[Path], how: Preprocessing) -> dict[str, np.ndarray]:
    """``rollout`` and ``last layer`` of the class token, (n, h, w) each."""
    layers = model.config.encoder.layers
    rolled, last = Rollout(layers), LastLayer(layers - 1)
    found: dict[str, list[Tensor]] = {"rollout": [], "last layer": []}

    def images() -> Iterator[Tensor]:
        for batch in batches(pictures, how, 10):
            yield batch.images
            found["rollout"].append(to_patches(rolled.product, model.config, "class"))
            found["last layer"].append(to_patches(last.weights, model.config, "class"))

    observe(lambda batch, trace: model.encode(batch, 1, trace), images(), [rolled, last])
    return {name: torch.cat(maps).numpy() for name, maps in found.items()}


def main() -> None:
    """Measure, print, record and draw."""
    data = Path(os.environ.get("VITRAIL_DATA", "")) / "pennfudan"
    pictures = sorted((data / "images").glob("*.jpg"))
    if not pictures:
        sys.exit("Set VITRAIL_DATA to the folder that holds pennfudan/{images,masks}.")
    classifier = vitrail.load("saliency-s14", image_size=224, device="cpu")
    how = replace(classifier.card.preprocessing, fit="squash", crop_fraction=1.0)
    model = classifier.model
    assert isinstance(model, VisionTransformer)
    (h, w), (ch, cw) = model.config.grid, model.config.cell
    plain = replace(how, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest")
    masks = []
    for picture in pictures:
        mask = np.asarray(Image.open(data / "masks" / f"{picture.stem}.png")) > 0
        pixels = preprocess(Image.fromarray(np.uint8(255 * mask)).convert("RGB"), plain)[0].numpy()  # (H, W)
        masks.append(pixels.reshape(h, ch, w, cw).mean(axis=(1, 3)))
    torch.manual_seed(0)
    untrained = build(model.config).eval()
    maps = {
        **class_maps(model, pictures, how),
        **{f"{name}, random weights": values for name, values in class_maps(untrained, pictures, how).items()},
        "centre": np.tile(central((h, w)), (len(pictures), 1, 1)),
    }
    result = landing(maps, np.stack(masks))
    findings = result.summary()
    for name in ("rollout", "last layer"):
        findings["maps"][name]["above_centre"] = result.excess(name, "centre")
        findings["maps"][name]["above_random_weights"] = result.excess(name, f"{name}, random weights")
    print(f"{findings['images']} pictures, pedestrians on {100 * findings['area']:.1f} % of the area")
    for name, row in findings["maps"].items():
        low, high = (100 * value for value in row["interval"])
        print(f"{name:<28} {100 * row['mass']:5.1f} % inside, above the area {low:+.1f} to {high:+.1f} points")
    print(record("attention_landing", findings))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    save(result.plot(), FIGURE)


if __name__ == "__main__":
    main()
