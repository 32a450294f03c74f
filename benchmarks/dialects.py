"""Every dialect against the library it belongs to, for ``benchmarks.parity``: random weights, toy and full size.

The library makes the model and writes it down itself; Vitrail reads that and both see the same images. At
another resolution each resamples the positions, Vitrail in that library's own way. What has no library to run
it (Google's ``.npz``, the papers' own checkpoints) is run by timm from the same tensors.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import timm
import torch
import torchvision
import transformers
from timm.layers import StdConv2d
from timm.models import save_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from vitrail.config import ModelCard, Preprocessing, Size, resnet, size_text, variant
from vitrail.model.build import Model, build
from vitrail.model.position import resample_grid
from vitrail.weights.dialects import written
from vitrail.weights.load import load_weights

Answer = tuple[Tensor, Tensor]
"""Logits, or the class token's features where there is no classifier, (B, F); and the feature map (B, h w, D)."""


@dataclass(frozen=True)
class Case:
    """One model in its library."""

    dialect: str
    model: str
    source: Any
    """What Vitrail loads."""
    run: Callable[[Tensor], Answer]
    """The library's model, which takes images of any size and of its own precision."""
    network: nn.Module
    native: Size
    other: Size
    options: dict[str, Any]
    """For ``load_weights``."""


def rows() -> list[dict[str, Any]]:
    """One row a case, resolution and precision."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, make in enumerate(
            (*_timm(), *_transformers(), _torchvision("toy"), _torchvision("B/16"), *_originals(), *_cnns())
        ):
            case = make(Path(scratch) / str(number))
            for size in (case.native, case.other):
                loaded = load_weights(case.source, image_size=size, **case.options)
                for dtype in (torch.float32, torch.float64):
                    found.append(_row(case, size, _ours(loaded), dtype))
                    print_row(found[-1])
            case.network.float()
        for row in (*_google(Path(scratch)), *_golden()):
            found.append(row)
            print_row(row)
    return found


def print_row(row: dict[str, Any]) -> None:
    """One line of the table, as it is computed."""
    name = f"{row['dialect']}, {row['model']}"
    numbers = " ".join(f"{row[what]:8.1e}" for what in ("logits", "feature_map") if row[what] is not None)
    print(f"{name:<46} {row['size']:<9} {row['precision']:<8} {numbers}", flush=True)


def _ours(loaded: Any) -> Model:
    model: Model = build(loaded.card.architecture)
    model.load_state_dict(loaded.tensors)
    return model


def _answer(model: Model, images: Tensor) -> Answer:
    run = model if model.classifier is not None else model.features
    return run(images), model.feature_map(images).flatten(2).mT


def _row(case: Case, size: Size, model: Model, dtype: torch.dtype) -> dict[str, Any]:
    images = torch.randn(1, model.config.channels, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    model.to(dtype)
    case.network.to(dtype)
    with torch.inference_mode():
        return _compare(case.dialect, case.model, size, dtype, _answer(model, images), case.run(images))


def _compare(dialect: str, model: str, size: Size, dtype: torch.dtype, ours: Answer, theirs: Answer) -> dict[str, Any]:
    return {
        "dialect": dialect,
        "model": model,
        "size": size_text(size),
        "precision": str(dtype).removeprefix("torch."),
        "logits": _apart(ours[0], theirs[0]),
        "feature_map": _apart(ours[1], theirs[1]),
    }


def _apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a.double() - b.double()).norm() / b.double().norm())


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """A model with all its tensors random: fresh biases, scales and heads are often zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data = noise * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.5 + 0.2 * noise
    return model.eval()


Make = Callable[[Path], Case]


def _timm() -> Iterator[Make]:
    toy = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64, "num_classes": 7}
    models = [
        ("toy", "vit_base_patch16_224", toy),
        ("toy, mean", "vit_base_patch16_224", {**toy, "global_pool": "avg"}),
        ("toy, registers", "vit_base_patch16_224", {**toy, "reg_tokens": 4, "no_embed_class": True}),
        ("B/16", "vit_base_patch16_224", {}),
        ("DINOv2 S/14 with registers", "vit_small_patch14_reg4_dinov2", {"img_size": 224}),
    ]
    for name, architecture, arguments in models:

        def make(folder: Path, name: str = name, architecture: str = architecture, arguments: Any = arguments) -> Case:
            model = randomised(timm.create_model(architecture, **arguments))
            save_for_hf(model, str(folder), model_args=arguments)
            patch = model.patch_embed.patch_size[0]
            side = arguments.get("img_size", 224)
            return Case("timm", name, folder, _run_timm(model), model, (side, side), (5 * patch, 7 * patch), {})

        yield make


def _run_timm(model: Any) -> Callable[[Tensor], Answer]:
    def run(images: Tensor) -> Answer:
        dtype = model.patch_embed.proj.weight.dtype
        if images.shape[2:] != tuple(model.patch_embed.img_size):
            model.float().set_input_size(images.shape[2:])  # resampled in float32, as weights on disk are
            model.to(dtype)
        tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
        return model(images), model.fc_norm(tokens)

    return run


def _transformers() -> Iterator[Make]:
    toy = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64, "patch_size": 16}
    vit = {**toy, "intermediate_size": 80}
    models = [
        ("ViT toy", "ViT", "ForImageClassification", vit),
        ("DeiT toy", "DeiT", "ForImageClassification", vit),
        ("DINOv2 toy", "Dinov2", "ForImageClassification", toy),
        ("DINOv2 with registers, toy", "Dinov2WithRegisters", "ForImageClassification", toy),
        ("MAE encoder, toy", "ViTMAE", "Model", {**vit, "mask_ratio": 0.0}),
        ("ViT B/16", "ViT", "ForImageClassification", {}),
        ("DINOv2 B/14", "Dinov2", "ForImageClassification", {"image_size": 518, "patch_size": 14}),
    ]
    for name, family, kind, settings in models:

        def make(
            folder: Path, name: str = name, family: str = family, kind: str = kind, settings: Any = settings
        ) -> Case:
            config = getattr(transformers, f"{family}Config")(**settings)
            model = randomised(getattr(transformers, family + kind)(config))
            model.save_pretrained(folder)
            side = 224 if config.patch_size == 14 else config.image_size
            other = (5 * config.patch_size, 7 * config.patch_size)
            return Case("huggingface", name, folder, _run_transformers(model), model, (side, side), other, {})

        yield make


def _run_transformers(model: Any) -> Callable[[Tensor], Answer]:
    base = getattr(model, model.base_model_prefix, model)
    native, patch = base.config.image_size, base.config.patch_size

    def run(images: Tensor) -> Answer:
        always = "dinov2" in base.config.model_type  # interpolates whenever it has to
        other = images.shape[2:] != (native, native) and not always
        options: dict[str, Any] = {"interpolate_pos_encoding": True} if other else {}
        if "mae" in base.config.model_type:  # which shuffles patches before it drops none of them
            count = images.shape[2] * images.shape[3] // patch**2
            options["noise"] = torch.arange(count, dtype=images.dtype).expand(len(images), -1)
        if other and images.dtype == torch.float64:  # it would interpolate in float64 what stands on disk in float32
            table = base.embeddings.position_embeddings
            table.data = table.data.float()
        tokens = base(images, **options).last_hidden_state
        patches = tokens[:, -(images.shape[2] // patch) * (images.shape[3] // patch) :]
        return (model(images, **options).logits if base is not model else tokens[:, 0]), patches

    return run


def _torchvision(which: str) -> Make:
    def make(folder: Path) -> Case:
        if which == "toy":
            model = randomised(torchvision.models.VisionTransformer(64, 16, 3, 3, 48, 80, num_classes=7))
        else:
            model = randomised(torchvision.models.vit_b_16())
        folder.mkdir()
        torch.save(model.state_dict(), folder / "model.pth")
        heads = {"heads": 3} if which == "toy" else {}
        side = model.image_size
        other = (side + 32, side + 32)  # it takes square images alone

        def run(images: Tensor) -> Answer:
            if images.shape[2] != model.image_size:
                dtype = images.dtype
                state = {name: part.float() for name, part in model.state_dict().items()}
                state = torchvision.models.vision_transformer.interpolate_embeddings(images.shape[2], 16, state)
                model.image_size = images.shape[2]
                model.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"].to(dtype))
            x = model._process_input(images)
            tokens = model.encoder(torch.cat([model.class_token.expand(len(x), -1, -1), x], dim=1))
            return model(images), tokens[:, 1:]

        return Case("torchvision", which, folder / "model.pth", run, model, (side, side), other, heads)

    return make


def _originals() -> Iterator[Make]:
    small = {"embed_dim": 384, "depth": 12, "num_heads": 6, "num_classes": 0}
    models: list[tuple[str, str, dict[str, Any], str]] = [
        ("dino", "S/16", {**small, "img_size": 224}, "dino_vits16"),
        ("mae", "B/16", {"img_size": 224, "num_classes": 0}, "mae_vit_base_patch16"),
        ("moco-v3", "S/16, 12 heads", {**small, "num_heads": 12, "img_size": 224}, "moco_v3_vit_small"),
        (
            "dinov2",
            "S/14 with registers",
            {**small, "img_size": 518, "patch_size": 14, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
            "dinov2_vits14_reg",
        ),
    ]
    for dialect, name, arguments, architecture in models:

        def make(
            folder: Path,
            dialect: str = dialect,
            name: str = name,
            arguments: Any = arguments,
            architecture: str = architecture,
        ) -> Case:
            model = randomised(timm.create_model("vit_base_patch16_224", **arguments))
            state = dict(model.state_dict())
            if dialect == "dinov2":  # in its own names, and then as timm converts them
                width = state["cls_token"].shape[-1]
                state["register_tokens"] = state.pop("reg_token")
                state["pos_embed"] = torch.cat([torch.full((1, 1, width), 0.25), state["pos_embed"]], dim=1)
                state["mask_token"] = torch.zeros(1, width)
                model.load_state_dict(checkpoint_filter_fn(dict(state), model))
            folder.mkdir()
            torch.save(state, folder / "model.pth")
            side, patch = arguments["img_size"], arguments.get("patch_size", 16)
            run = _run_timm(model)
            # Their own resampling is not timm's: the other resolution is left to the tests of each function.
            return Case(
                dialect,
                name,
                folder / "model.pth",
                run,
                model,
                (side, side),
                (5 * patch, 7 * patch),
                {"architecture": architecture, "resampling": "bicubic-antialias"},
            )

        yield make


def _cnns() -> Iterator[Make]:
    """BiT's R50 and EfficientNet-B0: of convolutions as they are fresh, and norms as if they had learned."""

    def timms(dialect: str, name: str, architecture: str) -> Make:
        def make(folder: Path) -> Case:
            model = _lived(timm.create_model(architecture, num_classes=7))
            save_for_hf(model, str(folder))
            return Case(dialect, name, folder, _run_cnn(model, model.forward_features), model, *_SIDES, {})

        return make

    def torchvisions(folder: Path) -> Case:
        model = _lived(torchvision.models.efficientnet_b0(num_classes=7))
        folder.mkdir()
        torch.save(model.state_dict(), folder / "model.pth")
        run = _run_cnn(model, model.features)
        return Case("torchvision", "EfficientNet-B0", folder / "model.pth", run, model, *_SIDES, {})

    def googles(folder: Path) -> Case:
        config = resnet("R50", classes=7)
        config = replace(config, trunk=replace(config.trunk, standard_eps=1e-10))
        folder.mkdir()
        path = folder / "model.npz"
        state = _lived(build(config)).state_dict()
        written("google", config).write(ModelCard(config, Preprocessing(config.image_size)), state, path)
        model: Any = timm.create_model("resnetv2_50x1_bit", num_classes=7)
        model.load_pretrained(str(path))
        for part in model.modules():
            if isinstance(part, StdConv2d):
                part.eps = 1e-10  # as in Google's code; timm reads these files with 1e-8
        return Case("google", "BiT R50", path, _run_cnn(model.eval(), model.forward_features), model, *_SIDES, {})

    yield timms("timm", "BiT R50", "resnetv2_50x1_bit")
    yield timms("timm", "EfficientNet-B0", "efficientnet_b0")
    yield torchvisions
    yield googles


_SIDES: tuple[Size, Size] = ((224, 224), (80, 112))


def _run_cnn(model: nn.Module, features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Answer]:
    return lambda images: (model(images), features(images).flatten(2).mT)


def _lived(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            for tensor, centre in ((part.weight, 1.0), (part.bias, 0.0)):
                tensor.data.copy_(centre + 0.4 * (torch.rand(tensor.shape, generator=generator) - 0.5))
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.copy_(0.4 * (torch.rand(part.running_mean.shape, generator=generator) - 0.5))
            part.running_var.copy_(0.8 + 0.4 * torch.rand(part.running_var.shape, generator=generator))
    for tensor in list(model.parameters())[-2:]:
        tensor.data.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def _google(scratch: Path) -> Iterator[dict[str, Any]]:
    """B/16 in Google's ``.npz``, read by timm's own reader of it and by ours; GELU by tanh in both."""
    config = variant("ViT-B/16", classes=1000)
    config = replace(config, encoder=replace(config.encoder, mlp="gelu-tanh"))
    path = scratch / "b16.npz"
    card = ModelCard(config, Preprocessing(config.image_size))
    written("google").write(card, randomised(build(config)).state_dict(), path)
    model: Any = timm.create_model("vit_base_patch16_224", act_layer="gelu_tanh", num_classes=1000)
    model.load_pretrained(str(path))
    case = Case("google", "B/16", path, _run_timm(model.eval()), model, (224, 224), (224, 224), {})
    for dtype in (torch.float32, torch.float64):
        yield _row(case, (224, 224), _ours(load_weights(path)), dtype)
    table = load_weights(path).tensors["position.grid"].double()  # (14, 14, D)
    zoomed = scipy.ndimage.zoom(table.numpy(), (20 / 14, 20 / 14, 1), order=1)  # as Google's code does it
    theirs: Any = _ours(load_weights(path, image_size=(320, 320)))
    case = Case("google", "B/16", path, lambda images: _answer(theirs, images), theirs, (320, 320), (320, 320), {})
    for dtype in (torch.float32, torch.float64):
        ours: Any = _ours(load_weights(path, image_size=(320, 320)))
        if dtype == torch.float64:  # in which the table on disk is not
            ours.to(dtype).position.grid.data = resample_grid(table, (20, 20), "bilinear-corner")
        theirs.to(dtype).position.grid.data = torch.from_numpy(zoomed).to(dtype)
        yield _row(case, (320, 320), ours, dtype)


def _golden() -> Iterator[dict[str, Any]]:
    """Toy checkpoints with the logits that Google's own code gives them, where they are at hand."""
    folder = Path(os.environ.get("VITRAIL_DATA", "")) / "golden"
    for name in ("google-vit-toy", "google-vit-toy-gap-prelogits", "google-hybrid-toy"):
        if not (folder / f"{name}.npz").is_file():
            continue
        with np.load(folder / f"{name}.expected.npz") as expected:
            images = torch.from_numpy(expected["images"]).permute(0, 3, 1, 2)
            logits = torch.from_numpy(expected["logits"])
        size = (images.shape[2], images.shape[3])
        model = _ours(load_weights(folder / f"{name}.npz", image_size=size))
        with torch.inference_mode():
            found = model(images)
        label = f"{name.removeprefix('google-')}, Google's own logits"
        row = _compare("google", label, size, torch.float32, (found, found), (logits, logits))
        yield {**row, "feature_map": None}  # of which Google's were not kept
