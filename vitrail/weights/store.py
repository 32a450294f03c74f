"""Tensors and model folders on disk: safetensors and JSON, nothing that could run code."""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail.config import ModelCard
from vitrail.errors import UserError
from vitrail.record import from_dict, to_dict

FORMAT = "vitrail-model/1"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What other libraries call a model's tensors, or the index of their shards; the first that is there counts."""


def write_model(folder: Path, card: ModelCard, tensors: dict[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``, which is the caller's to make atomic."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {"format": FORMAT, **to_dict(card)}
    write_json(folder / "config.json", description)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file as people read it; like every write here, for the caller to make atomic."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a ``.safetensors`` file; like every write here, for the caller to make atomic.

    Raises:
        OSError: the disk is full, and so on.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata=metadata)
    except SafetensorError as error:
        # The library wraps the system's error in its own; the number in the text is all it keeps.
        if "os error 28" in str(error):
            raise OSError(28, "No space left on device", str(path)) from error
        raise


def read_model(folder: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read what ``write_model`` wrote.

    Raises:
        UserError: a file is missing, damaged, or from another format.
    """
    data = dict(read_json(folder / "config.json"))
    if data.pop("format", None) != FORMAT:
        raise UserError(f"{folder / 'config.json'} is not a Vitrail model of format {FORMAT}.")
    card = from_dict(ModelCard, data, str(folder / "config.json"))
    return card, read_tensors(folder / "model.safetensors")


def model_folder(path: Path) -> Path | None:
    """The folder of a model that ``path`` names: its own, or the one in a run folder; None: it names none of ours."""
    if not os.path.isdir(path):
        return None
    return next((folder for folder in (path / "model", path) if is_model(folder)), None)


def is_model(folder: Path) -> bool:
    """Whether ``folder`` holds a model that ``write_model`` wrote."""
    try:
        return str(read_json(folder / "config.json").get("format", "")).startswith("vitrail-model/")
    except UserError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        UserError: missing, unreadable or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: a model folder needs it.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): copy or download it again.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} should hold a JSON object.")
    return data


def weights_file(folder: Path) -> Path:
    """The file in ``folder`` that holds, or indexes, its tensors.

    Raises:
        UserError: there is none.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no weights: one of {', '.join(WEIGHT_FILES)} is needed.")


def shards(index: Path) -> list[str]:
    """Names of the files that an index such as ``model.safetensors.index.json`` spreads the tensors over.

    Raises:
        UserError: the index is damaged, or points outside its folder.
    """
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index} has no table weight_map from tensors to files: copy or download it again.")
    for name in table.values():
        if Path(name).name != name or name == ".." or name.endswith(".json"):
            raise UserError(f"{index} points to {name}, which is no file of tensors beside it: it cannot be trusted.")
    return sorted(set(table.values()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors, ``.npz`` or pickled (``.bin``, ``.pth``, ``.pt``) file, or of an index of shards.

    Which it is, the content says. A state dict under a key such as ``model`` or ``state_dict`` is
    unwrapped. Pickled files are read with ``weights_only=True``, which refuses anything but tensors and
    plain containers; arrays of objects, which are pickles too, are refused.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    if path.name.endswith(".index.json"):
        tensors: dict[str, Tensor] = {}
        for shard in shards(path):
            tensors.update(read_tensors(path.parent / shard))
        return tensors
    try:
        kind = _kind(path)
        if kind == "safetensors":
            return load_file(path)
        if kind == "npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
        # What a training script was called with is a plain table too, and stands in many checkpoints.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        if os.path.exists(path):  # safetensors says so of a file it may not read, too
            raise UserError(f"{path} may not be read: check its permissions.") from None
        raise UserError(f"{path} does not exist: the model's tensors should be there.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: check its permissions.") from None
    except Exception as error:  # safetensors, zip, unpickling and decoding each raise their own kinds
        refused = any(word in str(error) for word in ("weights_only", "Unsupported", "allow_pickle"))
        cause = "it holds more than tensors, which could run code" if refused else "it is damaged or incomplete"
        raise UserError(f"{path} cannot be read as weights: {cause}; get it again, or as safetensors.") from None
    for key in ("model", "state_dict", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(f"{path} holds no state dict: a table from names to tensors is needed.")
    return content


def _kind(path: Path) -> str:
    """``safetensors``, ``npz`` or ``pickle``, by a file's first bytes."""
    with path.open("rb") as file:
        head = file.read(9)
        if head[8:] == b"{":  # after eight bytes with the header's length
            return "safetensors"
        if head.startswith(b"PK") and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return "npz" if all(name.endswith(".npy") for name in archive.namelist()) else "pickle"
    return "safetensors" if path.suffix == ".safetensors" else "pickle"
