"""Checkpoints on disk: a folder of tensors and facts each, checksummed, without pickle.

``step-00000123/tensors.safetensors`` holds all tensors; ``state.json`` beside it the facts, among them the
SHA-256 of the tensors' file, and its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.atomic import explained, new_folder
from vitrail.errors import UserError
from vitrail.weights.store import read_tensors, write_tensors

VERSION = 1
TENSORS, FACTS = "tensors.safetensors", "state.json"


class Damaged(UserError):
    """A checkpoint is not as it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """What was written at a step."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is or would be."""
    return Path(folder) / f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """The steps that have a checkpoint, sound or not, the last one first."""
    if not Path(folder).is_dir():
        return []
    names = (re.fullmatch(r"step-(\d{8,})", path.name) for path in Path(folder).iterdir())
    return sorted((int(match[1]) for match in names if match), reverse=True)


def write(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint, in place of one of the same step, and return its folder.

    Args:
        tensors: of any dtype; strides are kept.
        facts: values that JSON can hold.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the other checkpoints stay as they are.
    """
    path = place(folder, step)
    with explained(path):
        remove(folder, step)
    with new_folder(path) as beside:
        write_tensors(beside / TENSORS, _apart(tensors), {"format": "pt"})
        content = {
            "version": VERSION,
            "step": step,
            "tensors": _digest(beside / TENSORS),
            "strides": {name: list(tensor.stride()) for name, tensor in tensors.items() if _permuted(tensor)},
            "facts": dict(facts),
        }
        content["digest"] = _digest_of(content)
        (beside / FACTS).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Checkpoint:
    """Read a checkpoint, whole or not at all.

    Raises:
        Damaged: a file is missing, or not as it was written.
        UserError: it may not be read, or is of another version.
    """
    try:
        content = json.loads((path / FACTS).read_text(encoding="utf-8"))
        digest = content.pop("digest")
        if digest != _digest_of(content):
            raise Damaged(f"{path} is damaged: {FACTS} is not as it was written.")
        if content["version"] != VERSION:
            raise UserError(f"{path} is of version {content['version']}: this Vitrail reads version {VERSION}.")
        if content["tensors"] != _digest(path / TENSORS):
            raise Damaged(f"{path} is damaged: {TENSORS} is not as it was written.")
    except FileNotFoundError as error:
        raise Damaged(f"{path} is incomplete: {Path(error.filename).name} is missing.") from None
    except PermissionError as error:
        raise UserError(f"{error.filename} may not be read: check its permissions.") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{path} is damaged: {FACTS} cannot be understood.") from None
    tensors = read_tensors(path / TENSORS)
    for name, strides in content["strides"].items():
        tensors[name] = torch.empty_strided(tensors[name].shape, strides, dtype=tensors[name].dtype).copy_(
            tensors[name]
        )
    return Checkpoint(content["step"], tensors, content["facts"])


def latest(
    folder: Path, warn: Callable[[str], None], wanted: Callable[[Checkpoint], bool] = lambda checkpoint: True
) -> Checkpoint | None:
    """The last checkpoint that is sound (and wanted); each damaged one passed over is warned of.

    Raises:
        UserError: one may not be read, or is of another version: what it holds should not be done again.
    """
    for step in steps_in(folder):
        try:
            checkpoint = read(place(folder, step))
        except Damaged as error:
            warn(f"{str(error).rstrip('.')}; the checkpoint before it is taken.")
            continue
        if wanted(checkpoint):
            return checkpoint
    return None


def prune(folder: Path, last: int, keep: int, also: Collection[int]) -> None:
    """Of the checkpoints up to step ``last``, remove all but ``keep`` and those of the steps in ``also``.

    Later ones, which were passed over, are left to be replaced.
    """
    for step in [step for step in steps_in(folder) if step <= last][keep:]:
        if step not in also:
            remove(folder, step)


def remove(folder: Path, step: int) -> None:
    """Remove a checkpoint, if it is there; half-removed, it goes by another name."""
    path = place(folder, step)
    if path.exists():
        hidden = path.with_name(f".{path.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed; for who holds the folder's lock."""
    for path in Path(folder).glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights each with a copy of their own, as a safetensors file needs them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.detach().clone() if storage in seen else tensor.detach()
        seen.add(storage)
    return apart


def _permuted(tensor: Tensor) -> bool:
    """Whether its axes lie in memory in another order (channels last), which a file does not keep."""
    return not tensor.is_contiguous() and torch.empty_like(tensor).stride() == tensor.stride()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
