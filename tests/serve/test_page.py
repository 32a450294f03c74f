"""The page in a real browser: photos in, what the model says of them out, and nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.serve.serving import Served, serving, toy
from vitrail.tasks.classifier import Classifier

playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright here")


class Watched:
    """A page that is open, and what it said and asked for."""

    def __init__(self, browser: Any, served: Served) -> None:
        self.page = browser.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(served.address)

    def has(self, selector: str, text: str | re.Pattern[str]) -> None:
        """Wait until it does."""
        playwright.expect(self.page.locator(selector)).to_have_text(text, timeout=30_000)


def test_photos_are_answered_each_under_its_own(
    browser: Any, served: Served, classifier: Classifier, photos: list[Path]
) -> None:
    watched = Watched(browser, served)
    watched.page.set_input_files("input[type=file]", photos)
    watched.has("#progress", f"{len(photos)} of {len(photos)} done")
    for path, expected in zip(reversed(photos), classifier.predict(photos)[::-1], strict=True):  # latest first
        card = watched.page.locator("#answers li").filter(has=watched.page.get_by_text(path.name, exact=True))
        (name, _), *_ = expected.labels
        playwright.expect(card.locator("dt.first")).to_have_text(name)  # with <b> in one: it is text
    assert watched.page.locator("#answers b").count() == 0
    watched.has("#answers li:first-child .name", photos[-1].name)
    watched.has("#answers li:nth-child(3) .gone", "This browser cannot show it")  # a TIFF
    # The same again counts from one.
    watched.page.set_input_files("input[type=file]", photos[:1])
    watched.has("#progress", "1 of 1 done")
    assert watched.said == []
    assert {re.sub(r"^blob:.*", "blob:", url) for url in watched.asked} == {
        *(served.address + path for path in ("", "predict?top=3")),
        "blob:",
    }


def test_what_is_no_photo_gets_the_reason(browser: Any, served: Served, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    watched = Watched(browser, served)
    watched.page.set_input_files("input[type=file]", tmp_path / "notes.txt")
    watched.has("#answers .refused", "The picture cannot be read: not an image.")


def test_a_dropped_photo_is_answered_wherever_it_falls(browser: Any, served: Served, photos: list[Path]) -> None:
    watched = Watched(browser, served)
    held = watched.page.evaluate_handle(
        """(bytes) => {
          const held = new DataTransfer();
          held.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", { type: "image/jpeg" }));
          return held;
        }""",
        list(photos[0].read_bytes()),
    )
    watched.page.dispatch_event("footer", "drop", {"dataTransfer": held})
    watched.has("#answers .name", "dropped.jpg")
    watched.has("#answers dd.first", re.compile(r"^\d+\.\d %$"))


def test_a_server_that_has_gone_is_told(browser: Any, photos: list[Path]) -> None:
    with serving(toy()) as served:
        watched = Watched(browser, served)
    watched.page.set_input_files("input[type=file]", photos[0])
    watched.has("#answers .refused", "The server does not answer. Is it still running?")
