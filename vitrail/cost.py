"""What a model costs: arithmetic on its configuration, no tensor made."""

from __future__ import annotations

import math

from vitrail.config import RELATIVE, Architecture, BiTConfig, ViTConfig
from vitrail.errors import UserError


def parameters(config: Architecture) -> int:
    """Number of learned numbers."""
    if isinstance(config, BiTConfig):
        layers = _layers(config)
        kernels = sum(size * size * inputs * outputs for size, inputs, outputs, _, _ in layers)
        return kernels + 2 * _normalised(config) + (config.width + 1) * config.head.classes
    encoder, width = config.encoder, config.encoder.width
    patch_embedding = math.prod(config.patch) * _channels(config) * width + width
    tokens_and_positions = len(config.tokens) * width + _positions(config)
    attention = 4 * width * width + (4 if encoder.qkv_bias else 1) * width
    mlp = _first_mlp_width(config) * (width + 1) + (encoder.mlp_width + 1) * width
    norms_and_scales = 4 * width + (0 if encoder.layer_scale is None else 2 * width)
    head = (config.classifier_width + 1) * config.head.classes
    if config.head.prelogits is not None:
        head += (config.feature_width + 1) * config.head.prelogits
    if "map" in config.head.parts:  # a probe, attention and a LayerNorm beside the MLP
        head += width + attention + mlp + 2 * width
    blocks = encoder.layers * (attention + mlp + norms_and_scales)
    convolutions = _convolutions(config)
    # Every convolution has a GroupNorm with two numbers a channel.
    stem = sum(size * size * inputs * outputs + 2 * outputs for size, inputs, outputs, _ in convolutions)
    return stem + patch_embedding + tokens_and_positions + blocks + 2 * width + head


def flops(config: Architecture) -> int:
    """Floating-point operations of one image's forward pass, a multiply-add counted as two.

    Matrix products and convolutions only, as is usual: O(N D^2) in the dense layers, O(N^2 D) in attention (article
    2.2).
    """
    if isinstance(config, BiTConfig):
        products = sum(size**2 * inputs * outputs * after for size, inputs, outputs, _, after in _layers(config))
        return 2 * (products + config.width * config.head.classes)
    return merged_flops(config, ())


def merged_flops(config: ViTConfig, merging: tuple[int, ...]) -> int:
    """``flops`` when layer l merges ``merging[l]`` tokens after its attention (``runtime.merging``).

    With what merging itself takes: similarities of half of the patches with the other half, by keys as wide as
    a head; and positions that are added before every block, worked out for tokens merged before.

    Raises:
        UserError: ``merging`` does not fit the model.
    """
    encoder, width = config.encoder, config.encoder.width
    *seen, left = merged_tokens(config, merging)
    mlp = (_first_mlp_width(config) + encoder.mlp_width) * width
    embedding = config.grid[0] * config.grid[1] * math.prod(config.patch) * _channels(config) * width
    H, W = config.image_size
    for size, inputs, outputs, stride in _convolutions(config):
        embedding += size * size * inputs * outputs * (H // stride) * (W // stride)
    blocks = 0
    for tokens, after in zip(seen, [*seen[1:], left], strict=True):
        blocks += tokens * 4 * width * width + _attention_products(config, tokens) + after * mlp
        if after < tokens:
            patches = tokens - len(config.tokens)
            blocks += (patches - patches // 2) * (patches // 2) * (width // encoder.heads)
        if tokens < config.sequence and config.position.place != "stem":
            blocks += tokens * config.sequence * width
    head = config.classifier_width * config.head.classes + config.feature_width * (config.head.prelogits or 0)
    if "map" in config.head.parts:  # keys and values of all tokens, the rest for the probe alone
        head += 2 * width * width + mlp + 2 * left * width * width + 2 * left * width
    return 2 * (embedding + blocks + head)


def merged_tokens(config: ViTConfig, merging: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens that the attention of each layer sees when layer l merges ``merging[l]`` after it, and those left at last.

    Raises:
        UserError: there is not one number for each layer, or a layer would merge more than half of its patches.
    """
    if merging and len(merging) != config.encoder.layers:
        raise UserError(
            f"Merging needs a number for each of the model's {config.encoder.layers} layers, not {len(merging)}: "
            "add or take away some, or leave all of them out for no merging."
        )
    tokens = [config.sequence]
    for layer, merged in enumerate(merging or (0,) * config.encoder.layers):
        patches = tokens[-1] - len(config.tokens)
        if not 0 <= merged <= patches // 2:
            raise UserError(
                f"Layer {layer} cannot merge {merged} of the {patches} patches it has: choose 0 to {patches // 2}."
            )
        tokens.append(tokens[-1] - merged)
    return tuple(tokens)


def attention_flops(config: ViTConfig) -> int:
    """Those of ``flops`` that grow with N^2: queries times keys and weights times values, in all layers.

    Relative positions add queries times their table, which without a clip grows with N as well.
    """
    return 2 * config.encoder.layers * _attention_products(config, config.sequence)


def weight_bytes(config: Architecture, number: int = 4) -> int:
    """Memory of the weights at ``number`` bytes each: 4 in float32, 2 in bfloat16."""
    return parameters(config) * number


def inference_bytes(config: Architecture, number: int = 4) -> int:
    """Largest sum of activations that live at once in one image's forward pass, fused attention, without gradients.

    Of a ResNet, what goes into a convolution and comes out, beside the shortcut. Of a ViT, either the tokens,
    normalised tokens, queries, keys, values and mixed values of attention (6 N D), or the tokens and normalised tokens
    beside both sides of the MLP's nonlinearity. O(N): no N x N numbers are ever held.
    """
    if isinstance(config, BiTConfig):
        layers = _layers(config)
        return number * max(2 * inputs * before + outputs * after for _, inputs, outputs, before, after in layers)
    width = config.encoder.width
    mlp = 2 * width + _first_mlp_width(config) + config.encoder.mlp_width
    return config.sequence * max(6 * width, mlp) * number


def training_bytes(config: Architecture, number: int = 4) -> int:
    """Activations of the encoder that one image's forward pass keeps for the backward pass, fused attention.

    Of a ResNet, for every convolution what it reads, and the norm before it. Of each block of a ViT: its input, both
    normalised inputs, queries, keys and values, what attention mixed, the sum after it (8 N D in all), and both sides
    of the MLP's nonlinearity.
    """
    if isinstance(config, BiTConfig):
        return number * sum(2 * inputs * before for _, inputs, _, before, _ in _layers(config))
    width = config.encoder.width
    block = 8 * width + _first_mlp_width(config) + config.encoder.mlp_width
    return config.encoder.layers * config.sequence * block * number


def _attention_products(config: ViTConfig, tokens: int) -> int:
    """Multiply-adds of one layer's attention that grow with N^2."""
    width = config.encoder.width
    products = 2 * tokens * tokens * width
    if config.position.kind in RELATIVE:
        products += tokens * (_relative_vectors(config) + 1) * width  # with all of the table, and a row of zeros
    return products


def _first_mlp_width(config: ViTConfig) -> int:
    """Outputs of the MLP's first dense layer: SwiGLU computes a gate beside each value."""
    return config.encoder.mlp_width * (2 if config.encoder.mlp == "swiglu" else 1)


def _positions(config: ViTConfig) -> int:
    """Learned numbers of the position scheme."""
    encoder, (h, w) = config.encoder, config.grid
    if config.position.kind in RELATIVE:
        return encoder.layers * _relative_vectors(config) * (encoder.width // encoder.heads)
    vectors = {"learned-1d": h * w * encoder.width, "learned-2d": (h + w) * (encoder.width // 2)}
    if config.position.kind not in vectors:
        return 0
    tables = encoder.layers if config.position.place == "every-layer" else 1
    return tables * (config.positioned * encoder.width + vectors[config.position.kind])


def _relative_vectors(config: ViTConfig) -> int:
    """Rows of one layer's table of offsets, those of the special tokens included."""
    h, w = config.grid
    reach = config.position.clip or ((h * w - 1,) if config.position.kind == "relative-1d" else (h - 1, w - 1))
    return math.prod(2 * k + 1 for k in reach) + (3 if config.positioned else 0)


def _channels(config: ViTConfig) -> int:
    """Channels of what is cut into patches."""
    return config.channels if config.stem is None else config.stem.outputs


def _convolutions(config: ViTConfig) -> list[tuple[int, int, int, int]]:
    """Size, input and output channels of a hybrid's convolutions, and pixels of the image to one of its output."""
    if config.stem is None:
        return []
    width, stride = config.stem.width, 4
    found = [(7, config.channels, width, 2)]
    inputs = width
    for stage, units in enumerate(config.stem.layers):
        before = stride
        width, stride = config.stem.width * 2**stage, 4 * 2**stage
        found.append((1, inputs, 4 * width, stride))  # the shortcut
        for _ in range(units):
            found += [(1, inputs, width, before), (3, width, width, stride), (1, width, 4 * width, stride)]
            inputs, before = 4 * width, stride
    return found


def _layers(config: BiTConfig) -> list[tuple[int, int, int, int, int]]:
    """A ResNet's convolutions: size, input and output channels, cells of the map before and after."""
    root, trunk = config.root, config.trunk
    H, W = _halved(config.image_size) if root == "7x7" else config.image_size
    found = [(7 if root == "7x7" else 3, config.channels, trunk.width, math.prod(config.image_size), H * W)]
    H, W = _halved((H, W)) if root == "7x7" else (H, W)
    inputs = trunk.width
    for stage, units in enumerate(trunk.layers):
        width, before = trunk.width * 2**stage, H * W
        if stage:
            H, W = _halved((H, W))
        found.append((1, inputs, 4 * width, before, H * W))  # the shortcut
        for unit in range(units):
            seen = before if unit == 0 else H * W
            found.append((1, inputs, width, seen, seen))
            found.append((3, width, width, seen, H * W))
            found.append((1, width, 4 * width, H * W, H * W))
            inputs = 4 * width
    return found


def _normalised(config: BiTConfig) -> int:
    """Channels that its norms see, all together: before every convolution of a unit, and at the end."""
    total, inputs = config.width, config.trunk.width
    for stage, units in enumerate(config.trunk.layers):
        width = config.trunk.width * 2**stage
        for _ in range(units):
            total += inputs + 2 * width
            inputs = 4 * width
    return total


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    """What a stride of 2 leaves."""
    return -(-size[0] // 2), -(-size[1] // 2)
