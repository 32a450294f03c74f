"""The experiments by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vitrail.analyze import canvas
from vitrail.atomic import refuse_unwritable
from vitrail.config import suggestion
from vitrail.errors import UserError
from vitrail.evaluate.metrics import wilson
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
from vitrail.experiments.pictures import commonest, look_at
from vitrail.experiments.run import Result
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
        UserError: there is no such experiment, the data do not fit it, matplotlib is missing, the page could not be
            written, or a run fails.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"There is no experiment {name!r}{suggestion(name, EXPERIMENTS)}.")
    show = Show(quiet)
    canvas.require()
    on_own_accelerator()
    root, folder = Path(data), Path(out)
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name one of {{train,test}}/<class>/.")
    refuse_unwritable(folder / SPLITS)
    if page is not None:
        refuse_page(Path(page))
    root = root.absolute()
    lab = Lab(folder, root.parent, show, processes)
    for sentence in look_at(root, folder / SPLITS / f"{root.name}.csv", show):
        lab.note(sentence)
    command = f"vitrail reproduce {name} --data {root.name} --scale {scale}"
    found = EXPERIMENTS[name](lab, root.name, scale, command)
    if untaught := _untaught(found.results, root):
        lab.note(untaught)
    shown = [result.run for result in found.results]
    others = [result for result in lab.asked.values() if result.run not in shown]
    found = replace(found, others=others, notes=lab.notes)
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


def _untaught(results: Sequence[Result], root: Path) -> str:
    """A sentence on runs that learned nothing, if there are any."""
    usual = commonest(root)
    judged = [wilson(int(one.right.sum()), one.test_images)[0] for one in results if one.test_images]
    if not (untaught := sum(low <= usual for low in judged)):
        return ""
    return (
        f"{untaught} of {len(judged)} runs cannot be told from always answering the commonest class "
        f"({100 * usual:.1f} %): labels may be mixed up, pictures too few, or training too short."
    )


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")
