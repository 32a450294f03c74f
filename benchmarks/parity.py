"""The real weights in Vitrail and in the libraries they could also run in: ||a - b|| / ||b|| of what comes out.

``python -m benchmarks.parity`` fetches ``saliency-s14`` (once), runs it in Vitrail, in transformers' Dinov2Model, in
timm's vit_small_patch14_dinov2 and, as the ONNX graph it came as, in onnxruntime, on the same random images, and
prints and records a table, with every other dialect's (``benchmarks.dialects``), and writes ``docs/parity.md``;
``--json PATH`` records the findings elsewhere, and writes no page. At another resolution than 224 each library
resamples the positions its own way, which Vitrail is then told to use. The weights have no classifier: the logits
are those of one random linear layer on the class token. One to two minutes on two cores.

Aim, written down before the first run: at most 1e-5 in float32. Transformers and timm may come out at exactly 0: they
call the same kernels of torch in the same order, and where a fused product of q, k and v rounds as three separate ones
do (a matter of the processor), no bit differs. The rows called control, where one bias on the library's side is
scaled by 1.0001, show what the comparison says when something does differ.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import dialects
from benchmarks.results_file import record
from vitrail.config import Resampling, Size, size_text
from vitrail.model.build import build
from vitrail.weights import wheel
from vitrail.weights.load import load_weights

WEIGHTS = "saliency-s14"
NATIVE, OTHER = (224, 224), (336, 252)
PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
GRAPH_TOKENS = "/backbone/layernorm/Add_1_output_0"

INTRODUCTION = """\
# How far Vitrail is from the libraries

Written by `python -m benchmarks.parity`. ||a - b|| / ||b|| of logits (of the class token's features where a model has
no classifier) and of the last feature map, on the same images. Models of random weights are made and saved by the
library itself; at the second resolution each side resamples the positions, Vitrail in that library's own way. 0 means
bit for bit: both call the same kernels of PyTorch in the same order. Google's `.npz` is run by timm with GELU by tanh,
and held to the logits that Google's own code gives; DINO's, MAE's and MoCo v3's checkpoints are run by timm, DINOv2's
through timm's converter. BiT's `.npz` is read and run by timm too, with the epsilon of Google's code. Aim: 1e-5 in
float32, 1e-10 in float64. The last feature map of 16 units of BiT is a little further off in float32: rounding, as
float64 shows."""
REAL = """\
The real weights `saliency-s14` (a ViT-S/14 of DINOv2's architecture) in three libraries; *control* has one bias scaled
by 1.0001 on the library's side, to show what a difference looks like."""

Tokens = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> last normalised tokens (B, N, D), the class token first."""


def main() -> None:
    """Compare, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to record the findings (benchmarks/results/parity.json)")
    path: Path | None = parser.parse_args().json
    findings = compare(wheel.fetch(WEIGHTS))
    print(f"{'library':<13} {'size':<8} {'precision':<9} {'logits':>8} {'features':>8} {'map':>8}")
    for row in findings:
        numbers = " ".join(f"{row[what]:8.1e}" for what in ("logits", "features", "feature_map"))
        print(f"{row['library']:<13} {row['size']:<8} {row['precision']:<9} {numbers}")
    everything = {"saliency-s14": findings, "dialects": dialects.rows()}
    if path is None:
        record("parity", everything)
        PAGE.write_text(page(findings, everything["dialects"]), encoding="utf-8")
    else:
        path.write_text(json.dumps(everything, indent=2) + "\n")


def page(real: list[dict[str, Any]], random: list[dict[str, Any]]) -> str:
    """The page of ``docs/`` that holds the tables."""
    lines = [
        *INTRODUCTION.splitlines(),
        "",
        "| dialect | model | pixels | precision | logits | feature map |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['dialect']} | {row['model']} | {row['size']} | {row['precision']} | {_text(row['logits'])} | "
        f"{_text(row['feature_map'])} |"
        for row in random
    ]
    lines += [
        "",
        *REAL.splitlines(),
        "",
        "| library | pixels | precision | logits | feature map |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['library']} | {row['size']} | {row['precision']} | {row['logits']:.1e} | {row['feature_map']:.1e} |"
        for row in real
    ]
    return "\n".join(lines) + "\n"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def compare(path: Path) -> list[dict[str, Any]]:
    """One row a library, resolution and precision; ``path`` is the wheel."""
    tensors = dict(wheel.understand(path, WEIGHTS).tensors)  # in transformers' names
    backbone = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")}
    libraries: list[tuple[str, Callable[[Size, torch.dtype], Tokens], Resampling]] = [
        ("transformers", lambda size, dtype: in_transformers(backbone, dtype), "bicubic"),
        ("timm", lambda size, dtype: in_timm(backbone, size, dtype), "bicubic-antialias"),
    ]
    rows = []
    for library, run, resampling in libraries:
        for size in (NATIVE, OTHER):
            for dtype in (torch.float32, torch.float64):
                theirs = run(size, dtype)
                rows.append(_row(library, theirs, in_vitrail(path, size, resampling, dtype), size, dtype))
    bias = "encoder.layer.0.mlp.fc1.bias"
    spoiled = {**backbone, bias: backbone[bias] * 1.0001}
    ours = in_vitrail(path, NATIVE, "bicubic-antialias", torch.float32)
    rows.append(_row("control, timm", in_timm(spoiled, NATIVE, torch.float32), ours, NATIVE, torch.float32))
    ours = in_vitrail(path, NATIVE, "bicubic", torch.float32)
    rows.append(_row("control, hf", in_transformers(spoiled, torch.float32), ours, NATIVE, torch.float32))
    rows.append(_row("onnxruntime", in_onnxruntime(path), ours, NATIVE, torch.float32))
    return rows


def _row(library: str, theirs: Tokens, ours: Tokens, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    batch = 1 if library == "onnxruntime" else 2  # the graph was exported for one
    images = torch.randn(batch, 3, *size, generator=generator).to(dtype)
    with torch.inference_mode():
        a, b = ours(images), theirs(images)  # (B, N, D)
    head = torch.randn(a.shape[-1], 1000, generator=generator).to(dtype)
    return {
        "library": library,
        "size": size_text(size),
        "precision": str(dtype).removeprefix("torch."),
        "logits": _apart(a[:, 0] @ head, b[:, 0] @ head),
        "features": _apart(a[:, 0], b[:, 0]),
        "feature_map": _apart(a[:, 1:], b[:, 1:]),
    }


def _apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).norm() / b.double().norm())


def in_vitrail(path: Path, size: Size, resampling: Resampling, dtype: torch.dtype) -> Tokens:
    """Here, through the public parts: the class token's feature and the feature map."""
    loaded = load_weights(path, image_size=size, resampling=resampling)
    model = build(loaded.card.architecture)
    model.load_state_dict(loaded.tensors)
    model.to(dtype)
    return lambda images: torch.cat([model.features(images)[:, None], model.feature_map(images).flatten(2).mT], dim=1)


def in_transformers(tensors: dict[str, Tensor], dtype: torch.dtype) -> Tokens:
    """Saved as a checkpoint of its kind and read by the library itself, so that it does the renaming."""
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        whole = {**tensors, "embeddings.mask_token": torch.zeros(1, 384)}
        save_file({name: tensor.contiguous() for name, tensor in whole.items()}, Path(folder) / "model.safetensors")
        loaded: Any = transformers.Dinov2Model.from_pretrained(folder, output_loading_info=True)
        model, about = loaded
    assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), about
    model.to(dtype).eval()
    return lambda images: model(images).last_hidden_state


def in_timm(tensors: dict[str, Tensor], size: Size, dtype: torch.dtype) -> Tokens:
    """Renamed here, apart from Vitrail's own table of names, which is under test."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    }
    state = {}
    for name, tensor in tensors.items():
        if "attention.attention" in name:
            if "query" in name:
                parts = [tensors[name.replace("query", part)] for part in ("query", "key", "value")]
                new = name.replace("encoder.layer", "blocks").replace("attention.attention.query", "attn.qkv")
                state[new] = torch.cat(parts)
            continue
        new = name
        for theirs, timms in names.items():
            new = new.replace(theirs, timms)
        state[new] = tensor
    model: Any = timm.create_model("vit_small_patch14_dinov2", img_size=518)
    model.load_state_dict(state, strict=True)
    model.set_input_size(size)
    model.to(dtype).eval()
    return lambda images: model.forward_features(images)


def in_onnxruntime(path: Path) -> Tokens:
    """The graph in the wheel, asked for its encoder's tokens as well."""
    with zipfile.ZipFile(path) as archive:
        proto = onnx.load_model_from_string(archive.read(wheel.WHEELS[WEIGHTS].member))
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(GRAPH_TOKENS))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    [images_name] = [entry.name for entry in session.get_inputs()]
    return lambda images: torch.from_numpy(session.run([GRAPH_TOKENS], {images_name: images.numpy()})[0])


if __name__ == "__main__":
    main()
