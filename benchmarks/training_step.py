"""What the fused attention's precision costs a training step on a CPU: ``python -m benchmarks.training_step``.

ViT-S/16 under bf16 autocast, forward and backward, batch 32, at 65 and 197 tokens; interleaved, medians of
``ROUNDS``. ``as it is`` computes attention in float32 (``vitrail.model.attention.fused``); ``bf16`` leaves it
in bfloat16; ``all fp32`` uses no autocast.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.results_file import record
from vitrail.config import variant
from vitrail.model import attention
from vitrail.model.build import build

ROUNDS = 7
BATCH = 32


def main() -> None:
    """Time the variants, print and record images a second."""
    ours = attention.fused
    ways = {"all fp32": (False, ours), "bf16": (True, F.scaled_dot_product_attention), "as it is": (True, ours)}
    findings = {}
    for pixels in (128, 224):
        model = build(variant("ViT-S/16", (pixels, pixels), classes=10)).train()
        images, labels = torch.randn(BATCH, 3, pixels, pixels), torch.randint(0, 10, (BATCH,))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (bf16, function) in ways.items():
                attention.fused = function
                start = time.perf_counter()
                _step(model, images, labels, bf16)
                seconds[name].append(time.perf_counter() - start)
        attention.fused = ours
        speeds = {name: round(BATCH / statistics.median(times), 1) for name, times in seconds.items()}
        findings[f"{model.config.sequence} tokens"] = speeds
        print(model.config.sequence, "tokens, images/s:", speeds)
    print(record("training_step", findings))


def _step(model: torch.nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
