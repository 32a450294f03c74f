"""The explorer in a real browser: planted attention is seen where it was planted, by mouse, finger and keys."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.report.explorer import Explorer, ExplorerPhoto, TokenGrid
from vitrail.report.figures import RAMP
from vitrail.report.inspection import Drawing, Inspection, Section, render

playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright here")
GRID, CELL = (4, 5), (10, 10)
H, W = GRID
N = 1 + H * W


def planted(target: Any) -> np.ndarray:
    """(N, N): 25 % to the class token, 60 % to the patch at target(row, column), the rest to all patches alike."""
    weights = np.full((N, N), 0.15 / (H * W))
    weights[:, 0] = 0.25
    for query in range(N):
        row, column = divmod(max(query - 1, 0), W)
        r, c = target(row, column)
        weights[query, 1 + min(r, H - 1) * W + min(c, W - 1)] += 0.6
    return weights


RIGHT, DOWN, CORNER = (
    planted(lambda r, c: (r, c + 1)),
    planted(lambda r, c: (r + 1, c)),
    planted(lambda r, c: (3, 4)),
)
LAYERS = np.stack([[RIGHT, DOWN], [DOWN, CORNER], [CORNER, RIGHT]])  # (L, K, N, N)


def in_words(weights: np.ndarray, row: int, column: int) -> str:
    """What a patch does, by loops."""
    near = distance = 0.0
    for r in range(H):
        for c in range(W):
            share = weights[1 + row * W + column, 1 + r * W + c]
            near += share * (abs(r - row) <= 2 and abs(c - column) <= 2)
            distance += share * math.hypot(10 * (r - row), 10 * (c - column)) / 0.75
    return f"25 % to the class token, {100 * near:.0f} % within 2 patches, mean distance {distance:.0f} px"


def picture(level: int) -> str:
    held = io.BytesIO()
    Image.new("L", (5 * 8, 4 * 8), level).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = TokenGrid(GRID, CELL)
    similarity = np.eye(H * W)
    similarity[1 * W + 2, 3 * W + 0] = 0.9  # the position of row 2, column 3 is like that of row 4, column 1
    photos = [
        ExplorerPhoto(name, picture(grey), [tokens.pack(z) for z in layers], tokens.pack(rollout[None]))
        for name, grey, layers, rollout in (
            (f"photos/{'w' * 90}.jpg", 120, LAYERS, DOWN),
            ("second", 30, LAYERS[:, ::-1], CORNER),
        )
    ]
    wide = Drawing("wide", '<svg viewBox="0 0 1200 90" width="1200pt"></svg>', "c" * 200, "a")
    sections = [Section("photo", "A " + "w" * 100, ["text"], [wide], [("t" * 90, "v" * 90)])]
    page = render(Inspection("m" * 60, [], 1, sections, Explorer(tokens, photos, similarity)))
    path = tmp_path_factory.mktemp("page") / "inspect.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture
def visit(opened: Any, file: Path) -> Any:
    return opened(file, GRID)


@pytest.fixture
def explore(opened: Any, tmp_path: Path) -> Callable[..., Any]:
    """Opens a page of one photo: what its tokens are, and attention (N, N) of each layer."""

    def explored(tokens: TokenGrid, *layers: np.ndarray) -> Any:
        photo = ExplorerPhoto("a", picture(120), [tokens.pack(layer[None]) for layer in layers])
        page = render(Inspection("m", [], 1, [], Explorer(tokens, [photo])))
        (tmp_path / "one.html").write_text(page, encoding="utf-8")
        return opened(tmp_path / "one.html", tokens.grid)

    return explored


def test_pointing_at_a_patch_shows_where_it_looks(visit: Any) -> None:
    visit.says("Layer 3, mean of 2 heads: class token attends 25 % to itself, 75 % to patches")
    at_rest = visit.colours()
    visit.page.locator("#explorer-layer").fill("1")
    visit.page.locator("#explorer-head").fill("1")
    visit.point(2, 3)
    visit.says("Layer 1, head 1: patch at row 2, column 3", in_words(RIGHT, 1, 2), "(61 %) to row 2, column 4")
    assert visit.brightest() == (2, 4)
    assert visit.colours()[1, 3] == pytest.approx(0.94 * np.array(RAMP[-1]) + 0.06 * 120, abs=3)  # over the grey photo
    assert np.abs(visit.colours() - at_rest).max() > 50
    assert visit.brightest("#explorer-similarity") == (2, 3)
    visit.point(2, 3, "#explorer-similarity")
    visit.says("class token")  # nothing is pointed at any more


def test_the_similarity_of_positions_is_that_of_the_patch(visit: Any) -> None:
    visit.page.locator("#explorer-photo").click(position=visit.at(2, 3))
    visit.says("row 2, column 3")
    colours = visit.colours("#explorer-similarity").sum(-1)
    assert sorted(map(tuple, np.argwhere(colours > 300).tolist())) == [(1, 2), (3, 0)]
    visit.point(4, 1, "#explorer-similarity")
    playwright.expect(visit.page.locator("#explorer-similarity-under")).to_have_text("row 4, column 1: 0.90")
    visit.point(1, 1, "#explorer-attention")
    playwright.expect(visit.page.locator("#explorer-attention-under")).to_have_text(re.compile(r"^row 1, column 1: "))


def test_sliders_rollout_and_photos_change_what_is_seen(visit: Any) -> None:
    page = visit.page
    page.locator("#explorer-photo").click(position=visit.at(2, 3))
    for layer, head, words, place in (
        (1, 2, in_words(DOWN, 1, 2), (3, 3)),
        (2, 2, in_words(CORNER, 1, 2), (4, 5)),
        (3, 2, in_words(RIGHT, 1, 2), (2, 4)),
        (1, 0, in_words((RIGHT + DOWN) / 2, 1, 2), None),
    ):
        page.locator("#explorer-layer").fill(str(layer))
        page.locator("#explorer-head").fill(str(head))
        visit.says(f"Layer {layer}, {f'head {head}' if head else 'mean of 2 heads'}: patch at row 2, column 3", words)
        assert place in (None, visit.brightest())
    colours = visit.colours().sum(-1)
    assert {tuple(place) for place in np.argwhere(colours > np.median(colours) + 100).tolist()} == {(1, 3), (2, 2)}
    page.locator("#explorer-rollout").check()
    visit.says("Rollout through 3 layers", in_words(DOWN, 1, 2))
    assert page.locator("#explorer-layer").is_disabled()
    page.locator("[name=photo]").nth(1).check(force=True)
    visit.says("Rollout through 3 layers", in_words(CORNER, 1, 2))
    playwright.expect(page.locator("#explorer-photo-under")).to_have_text("second")
    assert visit.colours("#explorer-photo")[0, 0].tolist() == [30, 30, 30]
    page.locator("#explorer-rollout").uncheck()
    page.locator("#explorer-head").fill("1")
    visit.says("Layer 1, head 1", in_words(DOWN, 1, 2))  # the second photo's heads are the other way round


def test_a_click_holds_and_another_lets_go(visit: Any) -> None:
    photo = visit.page.locator("#explorer-photo")
    photo.click(position=visit.at(2, 3))
    visit.point(4, 4)
    visit.says("row 2, column 3")
    photo.click(position=visit.at(2, 3))
    visit.point(4, 4)
    visit.says("patch at row 4, column 4")
    photo.click(position=visit.at(1, 1))
    visit.page.locator("#explorer-held").click()
    visit.says("class token attends")
    photo.click(position=visit.at(1, 1))
    visit.page.locator("[data-token='0']").click()
    visit.says("class token attends")


def test_keys_alone_reach_everything(visit: Any) -> None:
    page = visit.page
    page.locator("#explorer-photo").focus()
    page.keyboard.press("ArrowUp")  # the first arrow starts in the middle
    visit.says("row 3, column 3")
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.keyboard.press("Tab")  # what is held stays without the focus
    visit.says("row 3, column 1")
    page.locator("#explorer-photo").focus()
    page.keyboard.press("Escape")
    visit.says("class token attends")
    page.locator("#explorer-layer").focus()
    page.keyboard.press("Home")
    page.locator("#explorer-head").focus()
    page.keyboard.press("ArrowRight")
    visit.says("Layer 1, head 1")
    page.locator("#explorer-overview").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    visit.says("Layer 2, head 2")
    assert page.locator("#explorer-layer").input_value() == "2"
    page.locator("[data-view=attention] .enlarge").focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#explorer-large")).to_be_visible()
    page.keyboard.press("ArrowRight")
    visit.says("row 3, column 3")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#explorer-large")).to_be_hidden()
    playwright.expect(page.locator("[data-view=attention] .enlarge")).to_be_focused()


def test_a_click_on_the_overview_chooses_its_map(visit: Any) -> None:
    page = visit.page
    page.locator("#explorer-rollout").check()
    box = page.locator("#explorer-overview").bounding_box()
    # Three layers across; the mean and two heads down.
    page.locator("#explorer-overview").click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.9})
    visit.says("Layer 2, head 2")
    box, mark = (page.locator(f"#explorer-{name}").bounding_box() for name in ("overview", "mark"))
    assert mark["x"] + mark["width"] / 2 == pytest.approx(box["x"] + box["width"] / 2, abs=2)
    assert mark["y"] + mark["height"] == pytest.approx(box["y"] + box["height"], abs=2)


def test_a_click_on_a_view_enlarges_it(visit: Any) -> None:
    page = visit.page
    page.locator("#explorer-photo").click(position=visit.at(2, 3))
    page.locator("#explorer-head").fill("2")
    page.locator("#explorer-attention").click()
    playwright.expect(page.locator("#explorer-large-name")).to_have_text("Where it looks")
    playwright.expect(page.locator("#explorer-large-readout")).to_have_text(re.compile("row 2, column 3"))
    assert visit.brightest("#explorer-large-canvas") == (2, 4)
    large, small = (page.locator(f"#explorer-{name}").bounding_box() for name in ("large-canvas", "attention"))
    assert large["width"] > 1.5 * small["width"]
    page.locator("#explorer-close").click()
    page.locator("[data-view=photo] .enlarge").click()
    page.locator("#explorer-large-canvas").click(position=visit.at(1, 2, "#explorer-large-canvas"))
    visit.says("row 1, column 2")  # a patch can be chosen in it
    page.mouse.click(5, 5)  # outside
    playwright.expect(page.locator("#explorer-large")).to_be_hidden()


def test_nothing_can_be_asked_of_the_network(opened: Any, file: Path) -> None:
    visit = opened(file, GRID, silent=False)
    tried = "fetch('http://127.0.0.1:9/x').then(() => 'answered', (error) => error.name)"
    assert visit.page.evaluate(tried) == "TypeError"
    assert any("Content Security Policy" in line for line in visit.talk)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_the_window(width: int, opened: Any, file: Path) -> None:
    visit = opened(file, GRID, viewport={"width": width, "height": 740}, has_touch=True)
    page, room = visit.page, "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    needed, there = page.evaluate(room)
    assert needed <= there == width
    page.locator("#explorer-photo").tap(position=visit.at(2, 3))
    visit.says("patch at row 2, column 3")
    page.locator("#explorer-attention").tap()
    box = page.locator("#explorer-large").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert box["height"] <= 740
    needed, there = page.evaluate(room)
    assert needed <= there
    page.locator("#explorer-close").tap()
    page.locator("#explorer-photo").tap(position=visit.at(2, 3))
    visit.says("class token attends")  # the second tap lets go


def test_dark_and_printed_pages_show_the_same_state(visit: Any) -> None:
    page, paper = visit.page, "getComputedStyle(document.documentElement).backgroundColor"
    page.locator("#explorer-photo").click(position=visit.at(2, 3))
    page.locator("#explorer-head").fill("2")
    visit.says("row 2, column 3")
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    assert sum(map(int, re.findall(r"\d+", dark))) < 200 < sum(map(int, re.findall(r"\d+", light)))
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    for name in ("layer", "head", "rollout", "held"):
        playwright.expect(page.locator(f"#explorer-{name}")).to_be_hidden()
    for name in ("photo", "attention", "similarity", "overview", "readout"):
        playwright.expect(page.locator(f"#explorer-{name}")).to_be_visible()
    visit.says("Layer 3, head 2: patch at row 2, column 3")
    assert visit.brightest() == (2, 4)


def test_a_browser_that_cannot_unpack_says_so(opened: Any, file: Path, tmp_path: Path) -> None:
    without = file.read_text(encoding="utf-8").replace(
        "await start();", "delete globalThis.DecompressionStream; start();"
    )
    (tmp_path / "old.html").write_text(without, encoding="utf-8")
    visit = opened(tmp_path / "old.html", GRID, ready="#explorer-unable:not([hidden])")
    playwright.expect(visit.page.locator("#explorer-stage")).to_be_hidden()


def test_without_scripts_the_rest_of_the_page_stands(opened: Any, file: Path) -> None:
    visit = opened(file, GRID, ready="noscript p", java_script_enabled=False)
    playwright.expect(visit.page.locator("#explorer-stage")).to_be_hidden()
    playwright.expect(visit.page.locator("#figure-wide")).to_be_visible()


def test_without_special_tokens_positions_and_rollout_a_patch_looks_first(explore: Callable[..., Any]) -> None:
    visit = explore(TokenGrid(GRID, CELL, ()), DOWN[1:, 1:] / 0.75)
    visit.says("Layer 1: patch at row 3, column 3 attends", "within 2 patches")
    assert "token" not in visit.page.locator("#explorer-readout").inner_text()
    assert visit.brightest() == (4, 3)
    for name in ("similarity", "head", "rollout"):
        assert visit.page.locator(f"#explorer-{name}").count() == 0


def test_blocks_lie_where_their_patches_do_and_a_larger_one_is_no_brighter(explore: Callable[..., Any]) -> None:
    tokens = TokenGrid((2, 17), CELL, ())
    assert sorted(set(np.diff(tokens.edges[1]))) == [1, 2]
    even, last = np.full((34, 34), 1 / 34), np.zeros((34, 34))
    last[:, 33] = 1.0
    visit = explore(tokens, even, last)
    visit.page.locator("#explorer-layer").fill("1")
    box = visit.page.locator("#explorer-photo").bounding_box()
    visit.page.locator("#explorer-photo").click(position={"x": 16.5 / 17 * box["width"], "y": box["height"] / 4})
    visit.says("Layer 1: patches at row 1, columns 16 to 17 attend")
    flat = visit.colours()[:, :15]
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() <= 24  # a step of 4 bits, of 256 colours, at the bright end
    visit.page.locator("#explorer-layer").fill("2")
    visit.says("Layer 2", "(100 %) to row 2, columns 16 to 17")
    bright = visit.colours().sum(-1) > 400
    assert [tuple(place) for place in np.argwhere(bright).tolist()] == [(1, 15), (1, 16)]


def test_several_special_tokens_are_told_apart(explore: Callable[..., Any]) -> None:
    tokens = TokenGrid((1, 2), CELL, ("class", "register", "register", "register"))
    attention = np.tile([0.1, 0.2, 0.05, 0.25, 0.3, 0.1], (6, 1))
    visit = explore(tokens, attention)
    visit.says("class token attends 10 % to itself, 50 % to 3 register tokens, 40 % to patches; half")
    visit.page.locator("text=register 2 token").click()
    visit.says("register 2 token attends 5.0 % to itself, 10 % to the class token, 45 % to 2 other register tokens")
    visit.page.locator("#explorer-photo").click(position={"x": 5, "y": 5})
    visit.says("patch at row 1, column 1 attends 10 % to the class token, 50 % to 3 register tokens, 40 % within")
