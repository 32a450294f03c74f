"""A run that trains its model: from where it stands to its completion, in this process or in several."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

from vitrail.atomic import move_into, new_file, new_folder
from vitrail.errors import UserError
from vitrail.record import to_dict
from vitrail.report.terminal import Show
from vitrail.tasks.begun import TRAINING, Begun, complete, unfinished
from vitrail.tasks.classifier import Classifier
from vitrail.tasks.findings import after_training
from vitrail.tasks.fitting import classify, train_classifier
from vitrail.tasks.run_folder import Finetuned, judged, times_of, write_results
from vitrail.train.lock import locked
from vitrail.train.log import TIMING
from vitrail.weights.load import Loaded


def train_run(folder: Path, begun: Begun, start: float, show: Show) -> Finetuned:
    """Train from where the run stands, judge, and complete the run folder.

    Args:
        start: when this process began to work on it, by ``time.perf_counter``.

    Raises:
        UserError: see ``train_classifier``; what was trained is kept.
    """
    training, how = folder / TRAINING, begun.course
    with locked(folder):
        if not unfinished(folder):
            raise UserError(f"{folder} has been completed by another process meanwhile: nothing is left to do.")
        begun.check_photos()
        predictor = Classifier(begun.loaded, begun.settings.device).predictor
        card, found = begun.loaded.card, begun.findings
        about = {
            "method": how.method,
            "augmentation": to_dict(how.augmentation),
            "lora": None if how.lora is None else to_dict(how.lora),
            "model": to_dict(card.architecture),
            "photos": hashlib.sha256("".join(begun.digests).encode()).hexdigest()[:16],
        }
        board = begun.settings.tensorboard
        try:
            trained = train_classifier(
                show,
                predictor,
                card.preprocessing,
                found.train,
                found.val,
                how,
                training,
                about,
                None if board is None else Path(board),
            )
            card = replace(card, provenance={**card.provenance, "finetuned": how.method})
            loaded = Loaded(card, trained.tensors, begun.loaded.report)
            logits = classify(
                Classifier(loaded, begun.settings.device).predictor,
                card.preprocessing,
                found.val,
                how.settings.batch_size,
            )
            found = after_training(found, logits)
            loaded = replace(loaded, card=replace(card, temperature=found.temperature))
            result = replace(
                judged(folder, card.class_names, found),
                method=how.method,
                split=begun.split,
                probe=begun.probe,
                trained=trained,
                minutes=begun.minutes + (trained.earlier + time.perf_counter() - start) / 60,
                images_per_second=begun.images_per_second,
                unreadable=begun.unreadable,
            )
            results = training / "results"
            shutil.rmtree(results, ignore_errors=True)
            with new_folder(results) as beside:
                write_results(beside, result, loaded, begun.notes)
            move_into(folder, results, last="model")
            _note_times(training / TIMING, result)
        except UserError as error:
            again = "run the same command again"  # which would refuse the folder, since there is something in it now
            raise UserError(str(error).replace(again, f"run vitrail finetune --resume {folder}")) from error
        complete(folder)
    return result


def _note_times(path: Path, result: Finetuned) -> None:
    """Append the run's own times to those of its steps."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if "seconds" in json.loads(line)]
    with new_file(path) as beside:
        beside.write_text("".join([*kept, json.dumps(times_of(result)) + "\n"]), encoding="utf-8")
