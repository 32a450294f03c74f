"""The experiments by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vitrail.analyze import canvas
from vitrail.atomic import refuse_unwritable
from vitrail.config import suggestion
from vitrail.errors import UserError
from vitrail.experiments import (
    data_scale,
    head,
    inductive_bias,
    masking,
    noisy_student,
    patches,
    positions,
    resolution,
    versus_cnn,
)
from vitrail.experiments.findings import Findings
from vitrail.experiments.lab import SPLITS, Lab, on_own_accelerator
from vitrail.experiments.pictures import look_at
from vitrail.experiments.scale import ScaleName
from vitrail.report.markdown import refuse_page, write_section
from vitrail.report.terminal import Show

EXPERIMENTS: dict[str, Callable[[Lab, str, ScaleName, str], Findings]] = {
    "position-embeddings": positions.run,
    "position-embeddings-longer": positions.longer,
    "patch-size": patches.run,
    "resolution": resolution.run,
    "head": head.run,
    "masking": masking.run,
    "data-scale": data_scale.run,
    "versus-cnn": versus_cnn.run,
    "noisy-student": noisy_student.run,
    "inductive-bias": inductive_bias.run,
}


def reproduce(
    name: str,
    data: str | Path,
    out: str | Path = "evidence",
    scale: ScaleName = "small",
    page: str | Path | None = None,
    processes: int = 1,
    quiet: bool = False,
) -> Findings:
    """Make an experiment's runs, those that are not there yet, and write table, figure and verdict.

    A call that was stopped is gone on with by the same call: finished runs are not made again, and the one
    that was being made goes on where it was.

    Args:
        data: a folder of {train,test}/<class>/ or {train,val}/<class>/.
        out: the folder of results: ``cells/``, ``splits/``, ``runs/``, and the figure.
        page: a page whose section is written, besides ``NAME.md`` in ``out``.
        processes: runs made at a time.

    Raises:
        UserError: there is no such experiment, the data do not fit it, the page could not be written, or a run fails.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"There is no experiment {name!r}{suggestion(name, EXPERIMENTS)}.")
    show = Show(quiet)
    on_own_accelerator()
    root, folder = Path(data), Path(out)
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name one of {{train,test}}/<class>/.")
    refuse_unwritable(folder / SPLITS)
    if page is not None:
        refuse_page(Path(page))
    look_at(root.absolute(), folder / SPLITS / f"{root.absolute().name}.csv", show)
    lab = Lab(folder, root.absolute().parent, show, processes)
    command = f"vitrail reproduce {name} --data {root.name} --scale {scale}"
    found = EXPERIMENTS[name](lab, root.absolute().name, scale, command)
    shown = [result.run for result in found.results]
    found = replace(found, others=[result for result in lab.asked.values() if result.run not in shown])
    figure = folder / f"{name}.png"
    canvas.save(found.draw(), figure)
    write_section(folder / f"{name}.md", name, found.markdown(figure.name))
    if page is not None:
        address = Path(page).absolute().parent
        write_section(Path(page), name, found.markdown(_relative(figure.absolute(), address)))
    show.table(list(found.header), [list(row) for row in found.rows])
    for verdict in found.verdicts:
        show.say(f"{verdict.claim}: {verdict.word} ({verdict.numbers}).")
    show.say(f"{found.cost}; {figure}")
    return found


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")
