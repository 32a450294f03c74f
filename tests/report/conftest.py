"""A page in a real browser, watched: what it says on the console and what it asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Visit:
    """A page that is open, and all it said and asked for."""

    def __init__(self, browser: Any, file: Path, grid: tuple[int, int], ready: str, **options: Any) -> None:
        self.grid = grid
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.talk: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.talk.append(message.text))
        self.page.on("pageerror", lambda error: self.talk.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector(ready)

    def says(self, *parts: str) -> None:
        """Wait until the readout has every part; spaces are spaces, broken or not."""
        from playwright.sync_api import expect

        wanted = "(?=.*" + ")(?=.*".join(map(re.escape, parts)) + ")"
        readout = self.page.locator("#explorer-readout")
        expect(readout).to_have_text(re.compile(wanted.replace("\\ ", "\\s")), timeout=5_000)

    def at(self, row: int, column: int, canvas: str = "#explorer-photo") -> dict[str, float]:
        """The middle of a patch, counted from 1, on a canvas."""
        box = self.page.locator(canvas).bounding_box()
        return {"x": (column - 0.5) * box["width"] / self.grid[1], "y": (row - 0.5) * box["height"] / self.grid[0]}

    def point(self, row: int, column: int, canvas: str = "#explorer-photo") -> None:
        self.page.locator(canvas).hover(position=self.at(row, column, canvas))

    def colours(self, canvas: str = "#explorer-attention") -> np.ndarray:
        """(h, w, 3) in the middle of each patch."""
        found = self.page.evaluate(
            """([id, h, w]) => {
              const canvas = document.querySelector(id);
              const copy = new OffscreenCanvas(canvas.width, canvas.height);
              const context = copy.getContext("2d", { willReadFrequently: true });
              context.drawImage(canvas, 0, 0);
              const at = (share, side) => Math.floor(share * side);
              return Array.from({length: h * w}, (_, i) => [...context.getImageData(
                at((i % w + .5) / w, canvas.width), at((Math.floor(i / w) + .5) / h, canvas.height), 1, 1).data]);
            }""",
            [canvas, *self.grid],
        )
        return np.reshape(found, (*self.grid, 4))[..., :3]

    def brightest(self, canvas: str = "#explorer-attention") -> tuple[int, int]:
        row, column = np.unravel_index(self.colours(canvas).sum(-1).argmax(), self.grid)
        return int(row) + 1, int(column) + 1


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens a page; in the end it must have been silent, and have asked for nothing but itself."""
    visits: list[tuple[Visit, Path, bool]] = []

    def open_(
        file: Path,
        grid: tuple[int, int],
        ready: str = "#explorer-stage:not([hidden])",
        silent: bool = True,
        **options: Any,
    ) -> Visit:
        visits.append((Visit(browser, file, grid, ready, **options), file, silent))
        return visits[-1][0]

    yield open_
    for visit, file, silent in visits:
        visit.context.close()
        assert not silent or visit.talk == []
        assert [url for url in visit.asked if not url.startswith("data:")] == [file.as_uri()]
