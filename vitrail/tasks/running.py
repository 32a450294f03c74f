"""How a loaded model is run: as was asked, as ``vitrail tune`` found, or as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.atomic import new_file
from vitrail.errors import UserError
from vitrail.record import from_dict, to_dict
from vitrail.report.terminal import Show
from vitrail.runtime.device import native_bf16
from vitrail.runtime.engines import engine, fingerprint
from vitrail.runtime.machine import processor
from vitrail.runtime.plan import FILE, Runtime, Tuned, parse
from vitrail.runtime.predictor import Predictor
from vitrail.weights.store import model_folder, read_json, write_json


def folder_of(source: Any) -> Path | None:
    """The model folder that a source of weights names, if it names one of ours."""
    return model_folder(Path(source)) if isinstance(source, (str, Path)) else None


def running(predictor: Predictor, folder: Path | None, asked: str | Runtime | None, show: Show) -> Predictor:
    """The predictor with the engine that is asked for, or None: the one that was tuned, where it can be had.

    Args:
        folder: the model's, which keeps builds and what was tuned.

    Raises:
        UserError: what is asked for cannot be had, or is another than the model.
    """
    if asked is not None:
        return with_engine(predictor, folder, parse(asked) if isinstance(asked, str) else asked)
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        return predictor
    by = "in another way"
    try:
        tuned = read_tuned(path)
        # How many threads are best is another machine's own.
        runtime = tuned.runtime if tuned.processor == processor() else replace(tuned.runtime, threads=None)
        by = f"by {runtime.name}"
        if tuned.model and tuned.model != fingerprint(predictor.model):
            raise UserError("that was found for other weights.")
        return with_engine(predictor, folder, runtime)
    except UserError as error:
        show.warn(
            f"{path} says to run the model {by}, and it is run by PyTorch instead: {error} (vitrail tune writes that "
            "file again, and it may be removed.)"
        )
        return predictor


def with_engine(predictor: Predictor, folder: Path | None, runtime: Runtime) -> Predictor:
    """The predictor run in another way.

    Raises:
        UserError: it cannot be.
    """
    if runtime.precision == "bf16" and not native_bf16(predictor.device):
        raise UserError(f"There is no native bf16 on this machine, and emulated it is slow: {runtime.name} is no use.")
    if runtime.precision != "int8" and runtime == Runtime("eager", runtime.precision):
        return replace(predictor, bf16=runtime.precision == "bf16", engine=None, frozen=())
    if predictor.device.type != "cpu":
        raise UserError(f"{runtime.name} runs on a processor alone: say --device cpu, or nothing of the runtime.")
    return predictor.by(engine(predictor.model, runtime, beside=folder))


def read_tuned(path: Path) -> Tuned:
    """What ``vitrail tune`` wrote.

    Raises:
        UserError: the file is damaged.
    """
    return from_dict(Tuned, read_json(path), str(path))


def write_tuned(folder: Path, tuned: Tuned) -> Path:
    """Write what ``read_tuned`` reads.

    Raises:
        UserError: the folder cannot be written.
    """
    with new_file(folder / FILE) as beside:
        write_json(beside, to_dict(tuned))
    return folder / FILE
