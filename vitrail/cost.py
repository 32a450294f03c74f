"""What a model costs: arithmetic on its configuration, no tensor made."""

from __future__ import annotations

import math

from vitrail.config import RELATIVE, Architecture, ViTConfig
from vitrail.convolutions import convolutions
from vitrail.errors import UserError


def parameters(config: Architecture) -> int:
    """Number of learned numbers."""
    head = (config.classifier_width + 1) * config.head.classes
    around = sum(one.parameters for one in convolutions(config)) + head
    return around + _of_transformer(config) if isinstance(config, ViTConfig) else around


def _of_transformer(config: ViTConfig) -> int:
    """Numbers from the patches' embedding to the features, and pre-logits."""
    encoder, width = config.encoder, config.encoder.width
    patch_embedding = math.prod(config.patch) * _channels(config) * width + width
    tokens_and_positions = len(config.tokens) * width + _positions(config)
    attention = 4 * width * width + (4 if encoder.qkv_bias else 1) * width
    mlp = _first_mlp_width(config) * (width + 1) + (encoder.mlp_width + 1) * width
    norms_and_scales = 4 * width + (0 if encoder.layer_scale is None else 2 * width)
    head = (config.feature_width + 1) * config.head.prelogits if config.head.prelogits is not None else 0
    if "map" in config.head.parts:  # a probe, attention and a LayerNorm beside the MLP
        head += width + attention + mlp + 2 * width
    blocks = encoder.layers * (attention + mlp + norms_and_scales)
    return patch_embedding + tokens_and_positions + blocks + 2 * width + head


def flops(config: Architecture) -> int:
    """Floating-point operations of one image's forward pass, a multiply-add counted as two.

    Matrix products and convolutions only, as is usual: O(N D^2) in the dense layers, O(N^2 D) in attention (article
    2.2). Every token goes through every block, as papers count; a head that reads the class token alone saves the rest
    of the last block's work where the model is run (``Encoder``).
    """
    if isinstance(config, ViTConfig):
        return merged_flops(config, ())
    return 2 * (sum(one.products for one in convolutions(config)) + config.classifier_width * config.head.classes)


def embedding_flops(config: ViTConfig) -> int:
    """Of ``flops``, those of the patch embedding, a hybrid's stem included: as many for every patch size."""
    products = config.grid[0] * config.grid[1] * math.prod(config.patch) * _channels(config) * config.encoder.width
    return 2 * (products + sum(one.products for one in convolutions(config)))


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
    return embedding_flops(config) + 2 * (blocks + head)


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

    Either the tokens, normalised tokens, queries, keys, values and mixed values of attention (6 N D), or the tokens
    and normalised tokens beside both sides of the MLP's nonlinearity. O(N): no N x N numbers are ever held.
    Of a CNN the convolution counts that has the most around it.
    """
    if not isinstance(config, ViTConfig):
        return number * max(one.live for one in convolutions(config))
    width = config.encoder.width
    mlp = 2 * width + _first_mlp_width(config) + config.encoder.mlp_width
    return config.sequence * max(6 * width, mlp) * number


def training_bytes(config: Architecture, number: int = 4) -> int:
    """Activations of the encoder, or a CNN, that one image's forward pass keeps for the backward pass, fused attention.

    Of each block: its input, both normalised inputs, queries, keys and values, what attention mixed, the sum after
    it (8 N D in all), and both sides of the MLP's nonlinearity.
    """
    if not isinstance(config, ViTConfig):
        return number * sum(one.kept for one in convolutions(config))
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
