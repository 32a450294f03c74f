"""The convolutions of a model, one by one, for whoever adds up what they cost; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitrail.config import BiTConfig, EfficientNetConfig, Size, ViTConfig


@dataclass(frozen=True)
class Convolution:
    """One, and the norm or the biases that go with it."""

    size: int
    """Of its kernel, each way."""
    inputs: int
    outputs: int
    cells: int
    """Of its output, h w."""
    groups: int = 1
    more: int = 0
    """Learned numbers besides the kernel."""
    kept: int = 0
    """Numbers that training keeps around it for the backward pass, of one image."""
    live: int = 0
    """Numbers that are in memory while it is computed, of one image."""

    @property
    def parameters(self) -> int:
        """Learned numbers."""
        return self.size**2 * self.inputs // self.groups * self.outputs + self.more

    @property
    def products(self) -> int:
        """Multiply-adds of one image."""
        return self.size**2 * self.inputs // self.groups * self.outputs * self.cells


def convolutions(config: ViTConfig | BiTConfig | EfficientNetConfig) -> list[Convolution]:
    """All of a model, in the order they are computed: of a hybrid those of its stem, of a plain ViT none."""
    if isinstance(config, BiTConfig):
        return _bit(config)
    return _stem(config) if isinstance(config, ViTConfig) else _efficientnet(config)


def _stem(config: ViTConfig) -> list[Convolution]:
    """Each has a GroupNorm with two numbers a channel after it."""
    if config.stem is None:
        return []
    H, W = config.image_size

    def one(size: int, inputs: int, outputs: int, stride: int) -> Convolution:
        return Convolution(size, inputs, outputs, (H // stride) * (W // stride), more=2 * outputs)

    width, stride = config.stem.width, 4
    found = [one(7, config.channels, width, 2)]
    inputs = width
    for stage, units in enumerate(config.stem.layers):
        before = stride
        width, stride = config.stem.width * 2**stage, 4 * 2**stage
        found.append(one(1, inputs, 4 * width, stride))  # the shortcut
        for _ in range(units):
            found += [one(1, inputs, width, before), one(3, width, width, stride), one(1, width, 4 * width, stride)]
            inputs, before = 4 * width, stride
    return found


def _bit(config: BiTConfig) -> list[Convolution]:
    """Each but root and shortcuts has a GroupNorm with two numbers a channel before it; of what that sees and what
    ReLU makes of it, both are kept."""
    trunk, large = config.trunk, config.root == "7x7"
    stride = 2 if large else 1
    cells, width, pixels = _cells(config.image_size, stride), trunk.width, config.channels * _cells(config.image_size)
    live = pixels + width * cells
    found = [Convolution(7 if large else 3, config.channels, width, cells, kept=pixels, live=live)]
    if large:
        stride, pooled = 4, _cells(config.image_size, 4)
        # The maximum keeps what it sees, with a border, and as integers of 8 bytes where it found it.
        found = [replace(found[0], kept=pixels + width * (cells + 2 * pooled))]
        cells = pooled
    inputs = width
    for stage, units in enumerate(trunk.layers):
        width = trunk.width * 2**stage
        for unit in range(units):
            before = cells
            if stage > 0 and unit == 0:
                stride *= 2
                cells = _cells(config.image_size, stride)
            held = 4 * width * cells  # for the sum
            if unit == 0:
                found.append(Convolution(1, inputs, 4 * width, cells, live=inputs * before + held))
            for size, of, to, at, after in (
                (1, inputs, width, before, before),
                (3, width, width, before, cells),
                (1, width, 4 * width, cells, cells),
            ):
                found.append(
                    Convolution(
                        size, of, to, after, more=2 * of, kept=2 * of * at, live=held + 2 * of * at + to * after
                    )
                )
            inputs = 4 * width
    last = found.pop()  # with the norm after all units
    return [*found, replace(last, more=last.more + 2 * inputs, kept=last.kept + 2 * inputs * cells)]


def _efficientnet(config: EfficientNetConfig) -> list[Convolution]:
    """Each has a BatchNorm with two numbers a channel after it, but those of squeeze-and-excitation, which have biases.

    What BatchNorm sees, what it gives and what SiLU makes of that are kept.
    """
    stages, stride = config.stages, 2
    cells, pixels = _cells(config.image_size, stride), config.channels * _cells(config.image_size)

    def one(size: int, inputs: int, outputs: int, at: int, after: int, groups: int = 1, kept: int = 3) -> Convolution:
        return Convolution(
            size, inputs, outputs, after, groups, 2 * outputs, kept * outputs * after, inputs * at + 2 * outputs * after
        )

    found = [one(3, config.channels, stages[0].inputs, pixels // config.channels, cells)]
    for stage in stages:
        inputs = stage.inputs
        for layer in range(stage.layers):
            before, inner = cells, stage.expansion * inputs
            if layer == 0:
                stride *= stage.stride
                cells = _cells(config.image_size, stride)
            squeezed = max(1, inputs // 4)
            if inner != inputs:
                found.append(one(1, inputs, inner, before, before))
            found += [
                # Beside its own three, what is multiplied by the squeezed is kept.
                one(stage.kernel, inner, inner, before, cells, groups=inner, kept=4),
                Convolution(1, inner, squeezed, 1, more=squeezed),
                Convolution(1, squeezed, inner, 1, more=inner),
                one(1, inner, stage.outputs, cells, cells, kept=2),  # no SiLU
            ]
            inputs = stage.outputs
    return [*found, one(1, inputs, config.width, cells, cells)]


def _cells(size: Size, stride: int = 1) -> int:
    """h w at a stride; borders are padded so that nothing is cut off."""
    return -(-size[0] // stride) * -(-size[1] // stride)
