"""``vitrail noisy-student``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Json, Quiet, assignments, print_json


def noisy_student(
    data: Annotated[str, typer.Argument(help="Labelled pictures, as finetune takes them.")],
    unlabelled: Annotated[Path, typer.Option(help="A folder of pictures without labels.")],
    teacher: Annotated[Path, typer.Option(help="A model that knows the classes: a run folder.")],
    out: Annotated[Path, typer.Option(help="The folder of rounds; one that was begun is gone on with.")],
    rounds: Annotated[int, typer.Option(min=1, help="Each student teaches the next.")] = 1,
    confidence: Annotated[float, typer.Option(help="Pictures of which the teacher is less sure are left out.")] = 0.3,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="So many of each class, the surest; fewer are repeated.")
    ] = None,
    hard: Annotated[bool, typer.Option("--hard", help="Learn the likeliest class, not shares of all.")] = False,
    weights: Annotated[str | None, typer.Option(help="What a student begins as; by default random weights.")] = None,
    architecture: Annotated[str | None, typer.Option(help="The student, such as ViT-S/16.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Number of blocks.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Numbers a token.")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Pixels a side of a patch.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Pixels, 224 or 224x168 (height x width).")] = None,
    dropout: Annotated[float | None, typer.Option(help="Of dense layers, while training.")] = None,
    drop_path: Annotated[
        float | None,
        typer.Option(help="Stochastic depth of the last block, while training; 0.1 where a student has it."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How often each picture is trained on.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at its highest, for this batch size.")] = None,
    tuning: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of training or of views.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same result.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Have a teacher label pictures, and train a student on them and on the labelled ones, with noise.

    The last round's student is a run folder that every command takes.
    """
    from vitrail.tasks import noisy_student as task

    result = task.noisy_student(
        data,
        unlabelled,
        teacher,
        out,
        rounds=rounds,
        pseudo=task.PseudoLabels(not hard, confidence, per_class),
        seed=seed,
        quiet=quiet,
        tuning=assignments(tuning or []),
        weights=weights,
        architecture=architecture,
        layers=layers,
        width=width,
        patch=patch,
        resolution=resolution,
        dropout=dropout,
        drop_path=drop_path,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
    )
    if as_json:
        print_json(result.to_dict())
    elif quiet and result.evaluation is not None:
        print(f"{100 * result.evaluation.top1:.1f} % on {result.evaluation.images} held-out pictures: {result.folder}")
