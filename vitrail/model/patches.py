"""Image -> patch tokens (ViT section 3.1; article 2.1 and 3.1): one linear map in two forms, at any patch size."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.config import Size
from vitrail.model.position import antialiased

Order = Literal["chw", "cwh", "hcw", "hwc", "wch", "whc"]
"""How a patch's pixels are put in a row: the last letter runs fastest. PyTorch's kernels are chw, Flax's hwc."""


class PatchEmbedding(nn.Module):
    """D kernels of P x P x C with stride P and no padding: the linear map E on flattened patches."""

    def __init__(self, channels: int, width: int, patch: Size) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        # Flax's default for convolutions, which ViT was trained with: variance 1 / fan-in.
        # The cut at two deviations takes some of it away, which the constant puts back.
        std = math.sqrt(1.0 / (channels * patch[0] * patch[1])) / 0.87962566
        nn.init.trunc_normal_(self.projection.weight, std=std, a=-2 * std, b=2 * std)
        assert self.projection.bias is not None
        nn.init.zeros_(self.projection.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h w, D), patches in raster order."""
        grid: Tensor = self.projection(images)  # (B, D, h, w)
        return grid.flatten(2).transpose(1, 2)


class LinearPatchEmbedding(nn.Module):
    """The same map as the paper writes it (equation 1): patches laid flat, times E, plus a bias."""

    def __init__(self, channels: int, width: int, patch: Size, order: Order = "hwc") -> None:
        super().__init__()
        self.channels, self.patch, self.order = channels, patch, order
        self.projection = nn.Linear(channels * patch[0] * patch[1], width)  # its weight is E^T, (D, P P C)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h w, D), patches in raster order."""
        projected: Tensor = self.projection(flatten(images, self.patch, self.order))
        return projected


def flatten(images: Tensor, patch: Size, order: Order) -> Tensor:
    """(B, C, H, W) -> patches in raster order, each laid flat: (B, h w, P P C)."""
    (B, C, H, W), (P, Q) = images.shape, patch
    cells = images.reshape(B, C, H // P, P, W // Q, Q)  # (B, C, h, P, w, P)
    axes = {"c": 1, "h": 3, "w": 5}
    return cells.permute(0, 2, 4, *(axes[axis] for axis in order)).reshape(B, -1, C * P * Q)


def to_linear(convolution: PatchEmbedding, order: Order = "hwc") -> LinearPatchEmbedding:
    """The same map, flattening patches in ``order``; another order permutes the rows of E and nothing else."""
    kernel = convolution.projection.weight  # (D, C, P, P)
    D, C, P, Q = kernel.shape
    linear = LinearPatchEmbedding(C, D, (P, Q), order).to(kernel)
    weight = kernel.detach().permute(0, *("dchw".index(axis) for axis in order)).flatten(1)  # (D, P P C)
    linear.load_state_dict({"projection.weight": weight, "projection.bias": convolution.projection.bias})
    return linear


def to_convolution(linear: LinearPatchEmbedding) -> PatchEmbedding:
    """The same map as a convolution."""
    weight, order = linear.projection.weight.detach(), linear.order  # (D, P P C)
    lengths = {"c": linear.channels, "h": linear.patch[0], "w": linear.patch[1]}
    kernel = weight.reshape(-1, *(lengths[axis] for axis in order))
    kernel = kernel.permute(0, *(1 + order.index(axis) for axis in "chw"))  # (D, C, P, P)
    convolution = PatchEmbedding(linear.channels, len(weight), linear.patch).to(weight)
    convolution.load_state_dict({"projection.weight": kernel, "projection.bias": linear.projection.bias})
    return convolution


def resize_patches(kernel: Tensor, size: Size) -> Tensor:
    """Kernels (D, C, P, P) for patches of another size (FlexiViT, 2212.08013, section 3.4).

    With B the matrix that resizes a patch (bicubic, antialiased), the new kernel is the pseudo-inverse
    of B^T times the old: an enlarged patch then gives exactly the token it gave before; from a shrunk
    one, the best guess on average over white noise.
    """
    old = kernel.shape[2:]
    if tuple(old) == size:
        return kernel
    basis = torch.eye(old.numel(), dtype=torch.float64, device=kernel.device).reshape(-1, 1, *old)
    resized = antialiased(basis, size).flatten(1)  # B^T, (P P, P' P')
    pixels: Tensor = torch.linalg.pinv(resized) @ kernel.double().flatten(2).unsqueeze(-1)  # (D, C, P' P', 1)
    return pixels.reshape(*kernel.shape[:2], *size).to(kernel.dtype)
