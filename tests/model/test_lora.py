"""LoRA: what it starts as, what it changes, what learns, and that it folds into the weights."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, ViTConfig, registered, variant
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.encoder import Trace
from vitrail.model.lora import LoraLinear, add_lora, lora_config, lora_parameters, merge
from vitrail.model.vision import VisionTransformer
from vitrail.parts import ROLES, LoraConfig
from vitrail.settings import TrainSettings
from vitrail.train.optimizer import decays, optimizer_of

TOY = ViTConfig(
    encoder=EncoderConfig(layers=3, width=24, heads=3, mlp_width=32),
    patch=(4, 8),
    image_size=(12, 32),
    head=HeadConfig(classes=5),
)
MODELS = {
    "class token, not square": TOY,
    "registers, LayerScale, SwiGLU": replace(
        TOY,
        encoder=replace(TOY.encoder, mlp="swiglu", layer_scale=0.5),
        tokens=("class", *registered(3)),
        head=HeadConfig(("class", "mean"), classes=4),
    ),
    "relative positions, no qkv bias": replace(
        TOY, encoder=replace(TOY.encoder, qkv_bias=False), position=PositionConfig("relative-2d", clip=(2, 2))
    ),
    "rotary, attention pooling, no classifier": replace(
        TOY, position=PositionConfig("rope-2d"), head=HeadConfig(("map",)), encoder=replace(TOY.encoder, heads=2)
    ),
}
USUAL = LoraConfig(rank=4, alpha=8, roles=("q", "v"))


def _model(config: ViTConfig = TOY, dtype: torch.dtype = torch.float32) -> VisionTransformer:
    """A model whose every number is random, as after training."""
    model = build(config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=generator).to(dtype)
        tensor.data = noise * 0.2 if tensor.dim() > 1 else 1 + noise * 0.2
    return model


def _learned(model: VisionTransformer) -> VisionTransformer:
    """The same model with random numbers for its B, as after training."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            tensor.data = torch.randn(tensor.shape, generator=generator).to(tensor) * 0.1
    return model


def _images(config: ViTConfig = TOY, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(batch, config.channels, *config.image_size, generator=generator).to(dtype)


def _answer(model: VisionTransformer, images: Tensor, trace: Trace | None = None) -> Tensor:
    run = model if model.classifier is not None else model.features
    with torch.no_grad():
        answer: Tensor = run(images, trace)
    return answer


def _learning(model: VisionTransformer) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- the start ---


@pytest.mark.parametrize("which", MODELS)
def test_at_first_nothing_changes(which: str) -> None:
    config = MODELS[which]
    model, images = _model(config), _images(config)
    before, state = _answer(model, images), copy.deepcopy(model.state_dict())
    add_lora(model, LoraConfig(4, 8, ROLES, dropout=0.5))
    assert torch.equal(_answer(model, images), before)
    after = model.state_dict()  # the plain weights keep their names and their numbers
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert all(".lora_" in name for name in after.keys() - state.keys())


def test_a_is_kaiming_uniform_and_b_zero() -> None:
    model = build(variant("ViT-Ti/16"))
    add_lora(model, LoraConfig(16, 16, ("fc1", "fc2"), layers=(0,)))
    for name, inputs in (("fc1", 192), ("fc2", 768)):
        a = model.get_parameter(f"encoder.blocks.0.mlp.{name}.lora_A.{name}.weight").detach()
        bound = math.sqrt(6 / ((1 + 5) * inputs))  # He et al., with a = sqrt(5)
        assert a.shape == (16, inputs)
        assert bound * 0.99 < float(a.abs().max()) <= bound
        assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)  # of a uniform distribution
        assert not model.get_parameter(f"encoder.blocks.0.mlp.{name}.lora_B.{name}.weight").any()


def test_the_seed_alone_decides_a() -> None:
    def drawn(seed: int, layers: Any = None) -> dict[str, Tensor]:
        model = _model()
        torch.rand(3)  # whatever else was drawn
        state = torch.get_rng_state()
        add_lora(model, replace(USUAL, layers=layers), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {name: tensor for name, tensor in model.state_dict().items() if "lora_A" in name}

    first, again, other = drawn(0), drawn(0, layers=(2, 0, 1)), drawn(1)
    assert len(first) == 6
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first)
    assert len({float(tensor.sum()) for tensor in first.values()}) == 6


# --- the update ---


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 8 / 4), (True, 8 / 2)])
@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_a_role_changes_its_own_third_alone(role: Any, stabilised: bool, scale: float) -> None:
    model = _model()
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    plain = model.encoder.blocks[1].attention.qkv
    before = plain(x)
    add_lora(model, LoraConfig(4, 8, (role,), stabilised=stabilised, layers=(1,)))
    _learned(model)
    layer = model.encoder.blocks[1].attention.qkv
    assert isinstance(layer, LoraLinear)
    a, b = layer.lora_A[role].weight, layer.lora_B[role].weight
    for name, old, new in zip("qkv", before.chunk(3, dim=-1), layer(x).chunk(3, dim=-1), strict=True):
        if name == role:
            torch.testing.assert_close(new, old + scale * x @ a.T @ b.T)
            assert not torch.allclose(new, old)
        else:
            assert torch.equal(new, old)
    assert not any(isinstance(module, LoraLinear) for module in model.encoder.blocks[0].modules())


def test_swiglu_halves_are_adapted_apart() -> None:
    config = MODELS["registers, LayerScale, SwiGLU"]
    model = _model(config)
    add_lora(model, LoraConfig(2, 2, ("fc1",)))
    _learned(model)
    fc1 = model.encoder.blocks[0].mlp.fc1
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    updates = [x @ fc1.lora_A[half].weight.T @ fc1.lora_B[half].weight.T for half in ("gate", "up")]
    torch.testing.assert_close(fc1(x), F.linear(x, fc1.weight, fc1.bias) + torch.cat(updates, dim=-1))


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_merged_is_unmerged(which: str, dtype: torch.dtype, bound: float) -> None:
    config = MODELS[which]
    model, images = _model(config, dtype), _images(config, dtype=dtype)
    before, names = _answer(model, images), list(model.state_dict())
    add_lora(model, LoraConfig(4, 8, ROLES))
    unmerged = _answer(_learned(model), images)
    merge(model)
    merged = _answer(model, images)
    assert float((unmerged - before).norm() / before.norm()) > 0.01
    assert float((merged - unmerged).norm() / unmerged.norm()) <= bound
    assert list(model.state_dict()) == names
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert _learning(model) == {name for name, _ in model.named_parameters()}
    assert not any(module.training for module in model.modules())


def test_merging_leaves_other_holders_of_the_weights_alone() -> None:
    model = _model(dtype=torch.float64)
    add_lora(model, USUAL)
    _learned(model)
    kept = model.encoder.blocks[0].attention.qkv.weight
    before = kept.clone()
    merge(model)
    assert torch.equal(kept, before)
    assert not torch.equal(model.encoder.blocks[0].attention.qkv.weight, before)


# --- what learns ---


def test_only_the_adapters_and_the_classifier_learn() -> None:
    model = _model()
    add_lora(model, USUAL)
    assert _learning(model) == {name for name, _ in model.named_parameters() if ".lora_" in name} | {
        "classifier.weight",
        "classifier.bias",
    }
    _learned(model)
    model(_images()).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in _learning(model))
        assert parameter.grad is None or parameter.grad.any()


def test_the_classifier_can_be_frozen() -> None:
    model = _model()
    add_lora(model, USUAL, train_classifier=False)
    assert all(".lora_" in name for name in _learning(model))


def test_the_optimiser_groups_adapters_by_layer() -> None:
    model = _model()
    add_lora(model, USUAL)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert model.depth(name) == int(name.split(".")[2]) + 1
            assert decays(name, parameter)
    groups = optimizer_of(model, TrainSettings(steps=1, layer_decay=0.5), model.depth, top=4).param_groups
    assert [group["share"] for group in groups] == [0.125, 0.25, 0.5, 1.0, 1.0]
    assert [len(group["params"]) for group in groups] == [4, 4, 4, 1, 1]


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("roles", [("q",), ("q", "v"), ("k", "out"), ("fc1",), ROLES])
def test_the_number_of_parameters(which: str, roles: Any) -> None:
    config = MODELS[which]
    D, M, r = config.encoder.width, config.encoder.mlp_width, 4
    halves = 2 if config.encoder.mlp == "swiglu" else 1
    sizes = dict.fromkeys(("q", "k", "v", "out"), r * 2 * D) | {"fc1": halves * r * (D + M), "fc2": r * (D + M)}
    with torch.device("meta"):
        model = build(config)
        assert lora_parameters(model) == 0
        add_lora(model, LoraConfig(r, 8, roles, layers=(0, 2)), train_classifier=False)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert lora_parameters(model) == learning == 2 * sum(sizes[role] for role in roles)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_published_size() -> None:
    """What the example for images in peft's documentation prints: ViT-B/16, Food-101, rank 16, queries and values."""
    with torch.device("meta"):
        model = build(variant("ViT-B/16", classes=101))
        add_lora(model, LoraConfig(16, 16, ("q", "v")))
    learning = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert (sum(learning), sum(map(torch.numel, model.parameters()))) == (667_493, 86_466_149)


def test_a_few_steps_lower_the_loss() -> None:
    model, images = _model().train(), _images(batch=6)
    labels = torch.arange(6) % 5
    add_lora(model, replace(USUAL, dropout=0.1), train_classifier=False)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".lora_" not in name}
    optimiser = optimizer_of(model, TrainSettings(steps=8, learning_rate=1e-2), model.depth, top=4)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.6 * losses[0]
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())


# --- as before it was adapted ---


def test_dropout_is_on_the_update_alone_and_in_training_alone() -> None:
    model, images = _model(), _images()
    add_lora(model, replace(USUAL, dropout=0.5))
    without = model.train()(images)
    assert torch.equal(model(images), without)  # B is 0
    _learned(model)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_what_is_added_is_in_the_models_mode() -> None:
    training = _model().train()
    add_lora(training, replace(USUAL, dropout=0.5))
    assert all(module.training for module in training.modules())
    evaluating = _model()
    add_lora(evaluating, replace(USUAL, dropout=0.5))
    assert not any(module.training for module in evaluating.modules())


@pytest.mark.parametrize("which", MODELS)
def test_traced_and_fused_attention_agree(which: str) -> None:
    config = MODELS[which]
    model, images = _model(config, torch.float64), _images(config, dtype=torch.float64)
    add_lora(model, LoraConfig(4, 8, ROLES))
    _learned(model)
    seen: list[Tensor] = []
    trace = Trace(lambda kind, layer, value: seen.append(value), attention=range(3))
    torch.testing.assert_close(_answer(model, images, trace), _answer(model, images), rtol=0, atol=1e-12)
    assert [value.shape for value in seen] == [(2, config.encoder.heads, config.sequence, config.sequence)] * 3


def test_bf16_autocast_trains() -> None:
    model, images = _model().train(), _images()
    add_lora(model, USUAL)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(images), torch.tensor([0, 1]))
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


def test_a_copy_is_a_model_of_its_own() -> None:
    model, images = _model(), _images()
    add_lora(model, USUAL)
    twin = copy.deepcopy(model)
    before = _answer(twin, images)
    _learned(model)
    assert torch.equal(_answer(twin, images), before)
    assert lora_config(twin) == USUAL
    assert not torch.equal(_answer(model, images), before)


def test_it_can_be_traced_as_one_graph() -> None:
    model, images = _model(), _images()
    add_lora(model, LoraConfig(4, 8, ROLES))
    _learned(model)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), _answer(model, images))


# --- mistakes ---


def test_one_at_a_time() -> None:
    model = _model()
    assert lora_config(model) is None
    add_lora(model, USUAL)
    assert lora_config(model) == USUAL
    with pytest.raises(UserError, match="has LoRA already: merge it before"):
        add_lora(model, USUAL)
    merge(model)
    assert lora_config(model) is None
    add_lora(model, replace(USUAL, roles=("fc2",)))


def test_a_layer_that_is_not_there() -> None:
    model = _model()
    with pytest.raises(UserError, match=r"no layer 3 to adapt: the model has layers 0 to 2\."):
        add_lora(model, replace(USUAL, layers=(0, 3)))
    assert lora_config(model) is None
    assert isinstance(model.encoder.blocks[0].attention.qkv, nn.Linear)
    assert _learning(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rank": 0}, "rank of at least 1"),
        ({"alpha": 0}, "alpha above 0"),
        ({"alpha": math.nan}, "alpha above 0"),
        ({"alpha": math.inf}, "alpha above 0"),
        ({"roles": ()}, "needs roles"),
        ({"roles": ("q", "q")}, "each once"),
        ({"roles": ("q", "classifier")}, "no role 'classifier': choose among q, k, v, out, fc1, fc2"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"layers": ()}, "needs layers"),
        ({"layers": (1, 1)}, "each once"),
    ],
)
def test_impossible_settings(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(USUAL, **wrong)
