"""LoRA adapters on disk, in the format of the library peft.

An adapter is a folder with ``adapter_config.json`` and ``adapter_model.safetensors``. Its tensors are called
``base_model.model.<module>.lora_A.weight``, (r, in), and ``....lora_B.weight``, (out, r); those of a module that was
trained as a whole, here the classifier, ``base_model.model.<module>.weight`` and ``.bias``.

``<module>`` is what transformers 5 calls the module in memory, as in ``vit.layers.0.attention.q_proj``, wherever
transformers has words for the model, so that peft can put the adapter on it. Else it is ours with the matrix for its
last word: ``encoder.blocks.0.attention.q`` (``.k``, ``.v``, ``.out``) and ``encoder.blocks.0.mlp.fc1`` (``.fc2``; for
SwiGLU ``.gate`` and ``.up`` in place of ``.fc1``). Both are read, and transformers 4's names, such as
``vit.encoder.layer.0.attention.attention.query``, are read too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.config import ModelCard, ViTConfig, transformer
from vitrail.errors import UserError
from vitrail.model.build import blank, build
from vitrail.model.lora import adaptable, add_lora, lora_config
from vitrail.model.vision import VisionTransformer
from vitrail.parts import ROLES, LoraConfig
from vitrail.record import from_dict
from vitrail.weights.dialect import SAME, Rule, per_layer
from vitrail.weights.huggingface import TYPES, kind_of, naming
from vitrail.weights.store import read_json, read_tensors, write_json, write_tensors

SETTINGS = "adapter_config.json"
TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
"""The file peft writes, and the one it wrote before; the first that is there counts."""
_REFUSED = {
    "use_dora": "DoRA, which learns the lengths of columns as well",
    "use_qalora": "QA-LoRA, which pools its input",
    "lora_bias": "biases beside the low-rank matrices",
    "layer_replication": "layers that occur more than once",
    "rank_pattern": "ranks that differ between modules",
    "alpha_pattern": "alphas that differ between modules",
    "target_parameters": "LoRA on bare parameters",
    "alora_invocation_tokens": "LoRA from a certain token on",
}
"""Settings that change what is computed, and what each asks for."""
_REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the weights which the adapter stands beside."""


def write_adapter(folder: Path, model: VisionTransformer, card: ModelCard) -> None:
    """Write a model's low-rank matrices and its classifier into ``folder``, which is the caller's to make atomic.

    Args:
        card: the model's; what it says of transformers' repository goes along.

    Raises:
        UserError: the model has no LoRA.
        OSError: the disk is full, and so on.
    """
    config = lora_config(model)
    if config is None:
        raise UserError("The model has no LoRA to write as an adapter: write the model itself.")
    tensors: dict[str, Tensor] = {}
    targets: list[str] = []
    state = model.state_dict()
    for module, (ours,) in _modules(_written(card), model.config).items():
        if ours.format("A") in state:
            targets.append(module)
            tensors |= {f"base_model.model.{module}.lora_{side}.weight": state[ours.format(side)] for side in "AB"}
    if config.layers is None:  # else each by its full name: which layers are meant, peft would guess from patterns
        targets = sorted({re.sub(r".*\.\d+\.", "", module) for module in targets})
    if model.classifier is not None:
        tensors |= {f"base_model.model.{name}": state[name] for name in ("classifier.weight", "classifier.bias")}
    from_transformers = card.provenance.get("dialect") == "huggingface"
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": card.provenance.get("source") if from_transformers else None,
        "revision": card.provenance.get("revision") if from_transformers else None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "use_rslora": config.stabilised,
        "use_dora": False,
        "lora_dropout": config.dropout,
        "bias": "none",
        "target_modules": targets,
        "modules_to_save": None if model.classifier is None else ["classifier"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    write_tensors(folder / TENSORS[0], tensors, {"format": "pt"})


def read_adapter(folder: Path, model: VisionTransformer) -> LoraConfig:
    """Put the adapter in ``folder`` on a model, in place, with its classifier if it has one.

    Everything is checked before anything is changed; what learns afterwards is what ``add_lora`` says.

    Raises:
        UserError: a file is missing or damaged, the adapter is of another kind, or made for another model.
    """
    settings = _settings(folder)
    path = next((folder / name for name in TENSORS if os.path.isfile(folder / name)), folder / TENSORS[0])
    tensors = _translated(read_tensors(path), model.config, path)
    config = _config(settings, tensors, model.config, folder / SETTINGS)
    with blank():
        adapted = build(model.config)
        add_lora(adapted, config)
    shapes = {name: tensor.shape for name, tensor in adapted.state_dict().items()}
    given = {name.rpartition(".")[0] for name in tensors}
    for name in shapes:
        if name not in tensors and (".lora_" in name or name.rpartition(".")[0] in given):
            raise UserError(
                f"{path} lacks {name}: it is incomplete, or adapts other roles in one layer than in another, "
                "for which Vitrail has no words."
            )
    for name, tensor in tensors.items():
        if name not in shapes:
            raise UserError(
                f"{path} brings a classifier of {len(tensor)} classes, but the model has none: load it with as many."
            )
        if tensor.shape != shapes[name]:
            raise UserError(
                f"{path} does not fit the model: its {name} is {tuple(tensor.shape)}, not {tuple(shapes[name])}; "
                "it was made for a model of other widths or classes."
            )
    add_lora(model, config)
    model.load_state_dict(tensors, strict=False)
    return config


def _modules(rules: Sequence[Rule], config: ViTConfig) -> dict[str, tuple[str, ...]]:
    """Module as ``rules`` call it -> names of our matrices that it holds, with ``{}`` for A or B; one, as a rule."""
    stacked = {f"encoder.blocks.{{l}}.{module}.weight": names for module, names in adaptable(config.encoder).items()}
    found: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        for filled in per_layer([rule], config) if rule.ours[0] in stacked else ():
            module = filled.ours[0].removesuffix(".weight")
            ours = tuple(f"{module}.lora_{{}}.{name}.weight" for name in stacked[rule.ours[0]])
            theirs = [name.removesuffix(".weight") for name in filled.theirs]
            if len(theirs) == len(ours):
                found |= {their: (our,) for their, our in zip(theirs, ours, strict=True)}
            else:  # stacked there as well
                found[theirs[0]] = ours
    return found


def _own(config: ViTConfig) -> list[Rule]:
    """Our own names, each stacked matrix with one of its own."""
    rules = []
    for module, names in adaptable(config.encoder).items():
        within = f"encoder.blocks.{{l}}.{module.rpartition('.')[0]}"
        theirs = tuple(f"{within}.{name}.weight" for name in names)
        rules.append(Rule((f"encoder.blocks.{{l}}.{module}.weight",), theirs, SAME))
    return rules


def _written(card: ModelCard) -> list[Rule]:
    """The names a model's adapter is written under."""
    try:
        kind, prefix = kind_of(card)
    except UserError:
        return _own(transformer(card.architecture, "LoRA"))
    return naming(kind, transformer(card.architecture, "LoRA"), prefix, "5")


def _translated(tensors: Mapping[str, Tensor], config: ViTConfig, path: Path) -> dict[str, Tensor]:
    """An adapter's tensors under our names.

    Raises:
        UserError: one is neither a low-rank matrix of a module that can be adapted nor of the classifier.
    """
    modules = _modules(_own(config), config)
    for kind in TYPES:
        for prefix in ("", f"{kind}."):
            for layout in ("disk", "5"):
                modules |= _modules(naming(kind, config, prefix, layout), config)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"base_model\.model\.(classifier\.(?:weight|bias))", name):
            found[match[1]] = tensor
            continue
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if match is None:
            raise UserError(
                f"{path} holds a tensor {name}, but Vitrail reads low-rank matrices and the classifier alone: merge "
                "the adapter with the library that made it, and load the whole model."
            )
        if match[1] not in modules:
            raise UserError(
                f"{path} adapts {match[1]}, for which the model has no place: the adapter is another architecture's, "
                f"or adapts more than {', '.join(ROLES)} in layers 0 to {config.encoder.layers - 1}."
            )
        ours = modules[match[1]]
        parts = tensor.chunk(len(ours)) if match[2] == "B" and tensor.ndim else [tensor] * len(ours)
        found.update(zip((our.format(match[2]) for our in ours), parts, strict=False))
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """What ``adapter_config.json`` says.

    Raises:
        UserError: it is missing or damaged, or asks for what Vitrail's LoRA is not.
    """
    path = folder / SETTINGS
    if not os.path.isfile(path):
        raise UserError(f"{folder} holds no adapter: {SETTINGS} and {TENSORS[0]} are needed.")
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{path} describes an adapter of type {settings.get('peft_type')!r}, but Vitrail reads LORA alone."
        )
    asked = [what for setting, what in _REFUSED.items() if settings.get(setting)]
    if settings.get("bias", "none") != "none":
        asked.append("biases that were trained")
    if str(settings.get("init_lora_weights")).lower().startswith(_REBASED):
        asked.append(f"the initialisation {settings['init_lora_weights']!r}, which changes the weights beside it")
    if asked:
        raise UserError(
            f"{path} asks for {asked[0]}, which Vitrail's LoRA has not: merge the adapter with the library that made "
            "it, and load the whole model."
        )
    return settings


def _config(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], architecture: ViTConfig, path: Path
) -> LoraConfig:
    """The settings in our words; roles and layers are those there are tensors of.

    Raises:
        UserError: there are none, a setting is garbled, or the rank is not theirs.
    """
    roles, layers = set(), set()
    for name in tensors:
        if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)\.lora_[AB]\.(\w+)\.weight", name):
            layers.add(int(match[1]))
            roles.add(adaptable(architecture.encoder)[match[2]][match[3]])
    if not roles:
        raise UserError(f"{path.parent} holds no low-rank matrices: save the adapter again.")
    words = {
        "rank": settings.get("r", 8),  # what peft takes where nothing is said
        "alpha": settings.get("lora_alpha", 8),
        "roles": [role for role in ROLES if role in roles],
        "dropout": settings.get("lora_dropout", 0.0),
        "layers": None if len(layers) == architecture.encoder.layers else sorted(layers),
        "stabilised": settings.get("use_rslora", False),
    }
    config = from_dict(LoraConfig, words, str(path))
    for name, tensor in tensors.items():
        if ".lora_A." in name and tensor.shape[:1] != (config.rank,):
            raise UserError(f"{path} says r is {config.rank}, but {name} is {tuple(tensor.shape)}: save it again.")
    return config
