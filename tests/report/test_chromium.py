"""The page in a real browser: it says nothing on the console, asks for nothing, and fits a phone."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from vitrail.evaluate.metrics import evaluate_logits
from vitrail.record import to_dict
from vitrail.report.page import Album, Mistake, Photo, render
from vitrail.report.run import Alike, Candidate, Predicted, Result, Run, Suspected
from vitrail.settings import FinetuneSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def visit(page: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Lines on the console, and what the page asked the network for; the browser's own requests aside."""
    log = folder / "net.json"
    options = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--window-size=1280,800")
    command = [str(CHROMIUM), *QUIET, *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "</html>" in done.stdout, done.stderr
    console = re.findall(r"CONSOLE:\d+\] (.*), source:", done.stderr)
    parameters = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    own = [entry["url"] for entry in parameters if str(entry.get("network_isolation_key")).startswith("file://")]
    return console, own


@pytest.fixture(scope="module")
def page() -> str:
    held = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(held, "JPEG")
    photo = Photo("val/" + "w" * 120 + ".jpg", "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode())
    names = ["a" * 60, "<script>console.error('markup')</script>", "קטן", "d"]
    labels, answers = [0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 1, 0]
    logits = [[float(column == answer) for column in range(4)] for answer in answers]
    found = evaluate_logits(logits, labels, names)  # type: ignore[arg-type]
    result = Result(found.images, found.top1, found.interval, found.per_class, found.confusion)
    rows = [Predicted("p", names[label], names[answer], 0.9) for label, answer in zip(labels, answers, strict=True)]
    run = Run(
        folder=Path("run"),
        about={"finetune": to_dict(FinetuneSettings("photos"))},
        result=result,
        candidates=[Candidate(("class",), layers, 0.9, 0.1) for layers in (1, 2)],
        epochs=[],
        unreadable=[],
        counts=dict.fromkeys(names, (3, 2)),
        root="",
        predictions=rows,
        suspects=[Suspected("s", names[0], names[1], 0.1, 0.9)],
        near_duplicates=[Alike("a", "b", 0.99, names[0], names[1], "train/val")],
        problems={},
    )
    album = Album(
        [Mistake(rows[4], photo, photo)], [(run.suspects[0], photo)], [(run.near_duplicates[0], photo, photo)]
    )
    return render(run, album, "a model")


def test_the_report_is_silent_and_asks_for_nothing(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert visit(tmp_path / "report.html", tmp_path) == ([], [])


def test_the_watch_sees_a_page_that_talks(tmp_path: Path) -> None:
    asking = '<html><img src="http://127.0.0.1:9/x.png"><script>console.error("here")</script></html>'
    (tmp_path / "bad.html").write_text(asking, encoding="utf-8")
    console, own = visit(tmp_path / "bad.html", tmp_path)
    assert console == ['"here"']
    assert "http://127.0.0.1:9/x.png" in own


def test_the_pages_own_policy_stops_what_would_slip_through(page: str, tmp_path: Path) -> None:
    slipped = '<img src="http://127.0.0.1:9/x.png"><script>console.error("ran")</script></body>'
    (tmp_path / "report.html").write_text(page.replace("</body>", slipped), encoding="utf-8")
    console, own = visit(tmp_path / "report.html", tmp_path)
    assert own == []
    assert console
    assert all("Content Security Policy" in line for line in console)


MEASURE = """<script>
const root = document.documentElement;
console.log([innerWidth, root.clientWidth, root.scrollWidth].join(" "));
</script></body>"""


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_the_window(width: int, page: str, tmp_path: Path) -> None:
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", MEASURE)
    (tmp_path / "report.html").write_text(free, encoding="utf-8")
    # A window cannot be as narrow as a phone; a frame can.
    frame = f'<html><iframe src="report.html" style="border: 0; width: {width}px; height: 800px"></iframe></html>'
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    console, _ = visit(tmp_path / "frame.html", tmp_path)
    inner, room, needed = map(int, console[0].strip('"').split())
    assert inner == width
    assert needed <= room
