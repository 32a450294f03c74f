"""An inspection as a folder: tables and numbers, figures, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.analyze import canvas
from vitrail.analyze.finding import Finding
from vitrail.atomic import new_folder, refuse_existing, refuse_unwritable
from vitrail.errors import UserError
from vitrail.record import to_json
from vitrail.report.inspection import render
from vitrail.tasks.inspection import PARTS, Inspection
from vitrail.tasks.inspection_page import page
from vitrail.tasks.parquet import pyarrow, write_parquet


@dataclass(frozen=True)
class Inspected:
    """What was written."""

    out: Path
    findings: dict[str, dict[str, Any]]
    """Summaries by part."""
    absent: dict[str, str]
    """Why a part is not there."""
    images: int
    """That could be read."""
    unreadable: list[tuple[Path, str]]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "out": str(self.out),
            "images": self.images,
            "findings": self.findings,
            "absent": self.absent,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a person."""
        rows = [("pictures", str(self.images)), ("found", ", ".join(self.findings))]
        reasons: dict[str, list[str]] = {}
        for part, sentence in self.absent.items():
            reasons.setdefault(sentence.replace(part, "it"), []).append(part)
        rows += [("without", f"{', '.join(parts)}: {sentence}") for sentence, parts in reasons.items()]
        return [*rows, ("page", str(self.out / "inspect.html")), ("figures", str(self.out / "figures"))]


def write_inspection(inspection: Inspection, out: str | Path, parts: Sequence[str] = ()) -> Inspected:
    """Work out ``parts``, by default all that can be had, and write them to a new folder.

    In it: ``inspect.html``; ``figures/<part>.png`` and ``.svg``; ``numbers/<part>.parquet``, a row for each number,
    and ``.json``, the few to quote.

    Raises:
        UserError: a part that is named cannot be had, the folder exists, matplotlib or pyarrow is missing, or the
            disk is full; nothing is left behind then.
    """
    folder, show = Path(out), inspection.show
    refuse_existing(folder)
    refuse_unwritable(folder)
    canvas.require()
    pyarrow()
    for part in parts:
        inspection.check(part)
    if len(inspection.pictures):
        inspection.pictures.first(1)  # if none can be read, it should be known now
    found: dict[str, Finding] = {}
    absent: dict[str, str] = {}
    for part in PARTS:
        if parts and part not in parts:
            continue
        try:
            found[part] = inspection.find(part)
        except UserError as error:
            if parts:
                raise
            absent[part] = str(error)
    if not found:
        raise UserError(next(iter(absent.values())))
    with new_folder(folder) as beside, show.progress("Drawing", unit="part") as advance:
        (beside / "numbers").mkdir()
        (beside / "figures").mkdir()
        drawn = {}
        for number, (part, finding) in enumerate(found.items()):
            advance(number, len(found) + 1)
            write_parquet(beside / "numbers" / f"{part}.parquet", finding.table())
            (beside / "numbers" / f"{part}.json").write_text(to_json(finding.summary(), 2) + "\n", encoding="utf-8")
            drawn[part] = finding.plot()
            for ending in (".png", ".svg"):
                canvas.save(drawn[part], beside / "figures" / f"{part}{ending}")
        html = render(page(inspection, found, drawn, absent))
        (beside / "inspect.html").write_bytes(html.encode("utf-8", "replace"))
        advance(len(found) + 1, len(found) + 1)
    summaries = {part: finding.summary() for part, finding in found.items()}
    return Inspected(folder, summaries, absent, inspection.read, sorted(inspection.pictures.unreadable.items()))
