"""Figures: the same bytes each time, colours a page can change, and ids that do not meet."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import pytest
from PIL import Image

from vitrail.analyze import canvas
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@canvas.styled
def drawing() -> Figure:
    drawn, (left, right) = canvas.figure(1, 2)
    left.plot([1, 2], color=canvas.BLUE, label="a & b")
    left.set(title="A title")
    left.legend()
    right.imshow([[0, 1], [2, 3]])
    canvas.picture_only(right)
    return drawn


def test_the_style_holds_and_stays_inside() -> None:
    before = dict(matplotlib.rcParams)
    left = drawing().axes[0]
    assert left.get_title(loc="left") == "A title"
    assert not left.get_legend().get_frame_on()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_figure_is_the_same_bytes(ending: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        canvas.save(drawing(), tmp_path / folder / f"figure{ending}")
    assert (tmp_path / "one" / f"figure{ending}").read_bytes() == (tmp_path / "two" / f"figure{ending}").read_bytes()
    if ending == ".png":
        with Image.open(tmp_path / "one" / "figure.png") as picture:
            assert picture.width > 800


def test_a_page_gets_an_element_whose_colours_are_its_own() -> None:
    text = canvas.inline_svg(drawing(), "one")
    root = xml.etree.ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "var(--blue)" in text
    assert "var(--ink)" in text
    assert canvas.BLUE not in text
    assert "A title" in "".join(root.itertext())  # text stays text


def test_ids_of_two_figures_do_not_meet() -> None:
    both = [canvas.inline_svg(drawing(), name) for name in ("one", "two")]
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in both]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, own in zip(both, ids, strict=True):
        used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
        assert used <= own


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'vitrail\[inspect\]'"):
        drawing()
