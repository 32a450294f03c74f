"""The figures say what the numbers say: positions, heights and strengths of colour are read back from the SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.evaluate.metrics import wilson
from vitrail.report.figures import Line, heat_map, lines, reliability, scale, shortened, whisker

STRANGE = ["<script>alert(1)</script>", "\"quoted\" & 'so'", "קטן", "🦆" * 30, "x" * 300, ""]


def parts(svg: str, tag: str, kind: str = "") -> list[dict[str, str]]:
    """Attributes of the elements of a tag and class; fails unless the SVG is well-formed."""
    found = ElementTree.fromstring(svg).iter(tag)
    return [dict(element.attrib) for element in found if kind in element.get("class", "").split() or not kind]


@given(total=st.integers(1, 1000), share=st.floats(0, 1), floor=st.sampled_from([0.0, 0.5, 0.9]))
def test_a_whisker_holds_its_dot_and_stays_on_the_scale(total: int, share: float, floor: float) -> None:
    correct = round(share * total)
    svg = whisker(correct / total, *wilson(correct, total), floor=floor)
    (line,), (dot,) = parts(svg, "line"), parts(svg, "circle")
    left, middle, right = (float(text.rstrip("%")) for text in (line["x1"], dot["cx"], line["x2"]))
    assert 0 <= left <= middle <= right <= 100
    if floor == 0:
        assert middle == pytest.approx(100 * correct / total, abs=0.01)


@given(st.floats(0, 1))
def test_a_scale_starts_at_or_below_what_it_shows_and_ends_at_one(lowest: float) -> None:
    floor, ticks = scale(lowest)
    assert floor <= lowest
    assert ticks[0] == floor
    assert ticks[-1] == pytest.approx(1)
    assert np.allclose(np.diff(ticks), (1 - floor) / (len(ticks) - 1))


def test_the_diagonal_of_a_perfect_confusion_is_darkest_and_nothing_else_is_drawn() -> None:
    svg = heat_map((np.eye(5, dtype=int) * 7).tolist(), list("abcde"))
    assert [cell["fill-opacity"] for cell in parts(svg, "rect", "right")] == ["1.000"] * 5
    assert parts(svg, "rect", "wrong") == []


def test_a_heat_map_has_rows_of_truth_and_columns_of_answers() -> None:
    svg = heat_map([[60, 40, 0], [0, 100, 0], [1, 0, 0]], ["a", "b", "c"])
    (larger, smaller) = parts(svg, "rect", "wrong")
    assert (float(larger["x"]), float(larger["y"])) > (float(smaller["x"]), 0)
    assert float(larger["y"]) < float(smaller["y"])
    right = [float(cell["fill-opacity"]) for cell in parts(svg, "rect", "right")]
    assert right == [0.6, 1.0, 0.0]
    assert "a taken for b: 40 of 100" in svg


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=3, max_size=3))
def test_a_heat_map_writes_every_count_that_is_not_nothing(confusion: list[list[int]]) -> None:
    svg = heat_map(confusion, ["a", "b", "c"])
    strengths = [float(cell.get("fill-opacity", "0")) for cell in parts(svg, "rect")]
    assert all(0 <= strength <= 1 for strength in strengths)
    written = re.findall(r">(\d+)</text>", svg)
    off = [count for i, row in enumerate(confusion) for j, count in enumerate(row) if count and i != j]
    assert sorted(map(int, written)) == sorted(off + [confusion[i][i] for i in range(3)])


def test_bars_of_a_reliability_diagram_are_as_high_as_the_accuracy() -> None:
    confidence = np.repeat([0.31, 0.55, 0.95], 20)
    correct = np.concatenate([np.arange(20) < count for count in (5, 10, 20)])
    svg = reliability(confidence, correct, "here")
    heights = [float(bar["height"]) for bar in parts(svg, "rect", "bar")]
    assert heights == [pytest.approx(270 * share, abs=0.1) for share in (0.25, 0.5, 1.0)]
    assert {round(float(bar["height"])) for bar in parts(svg, "rect", "count")} == {34}
    (ideal,) = parts(svg, "line", "ideal")
    top, bottom = float(ideal["y2"]), float(ideal["y1"])
    for error in parts(svg, "line", "error"):
        assert top - 0.1 <= float(error["y2"]) < float(error["y1"]) <= bottom + 0.1


def test_a_confidence_of_one_falls_into_the_last_bin() -> None:
    assert len(parts(reliability(np.ones(3), np.ones(3, bool), ""), "rect", "bar")) == 1


def test_curves_rise_where_numbers_rise_and_leave_out_what_is_not_finite() -> None:
    svg = lines("Accuracy", [Line("held out", ((1, 0.5), (2, float("nan")), (3, 0.9), (4, 0.7)))], "epoch", True)
    (curve,) = parts(svg, "polyline")
    points = [tuple(map(float, point.split(","))) for point in curve["points"].split()]
    assert len(points) == 3
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]
    assert "held out from 50.0 % at 1 to 70.0 % at 4" in ElementTree.fromstring(svg).attrib["aria-label"]


POINTS = st.lists(st.tuples(st.integers(0, 500), st.floats(-1e6, 1e6)), max_size=30).map(tuple)


@given(st.lists(POINTS, max_size=4))
def test_curves_stay_inside_their_figure(curves: list[tuple[tuple[float, float], ...]]) -> None:
    svg = lines("Loss", [Line(f"run {number}", points) for number, points in enumerate(curves)], "epoch")
    _, _, width, height = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
    for curve in parts(svg, "polyline"):
        for point in curve["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_axis_of_shares_never_goes_beyond_all_of_them(one: float, other: float) -> None:
    svg = lines("Accuracy", [Line("a", ((0, one), (1, other)))], "epoch", as_percent=True)
    ticks = [float(text) for text in re.findall(r">(-?[\d.]+) %</text>", svg)]
    assert 2 <= len(ticks) <= 7
    assert max(ticks) <= 100
    assert np.allclose(np.diff(ticks), np.diff(ticks)[0], rtol=1e-3)  # what is written is where it stands


@pytest.mark.parametrize("name", STRANGE)
def test_names_are_text_in_every_figure(name: str) -> None:
    for svg in (heat_map([[1, 1], [0, 2]], [name, "b"]), lines(name, [Line(name, ((0, 1.0),))], name)):
        root = ElementTree.fromstring(svg)
        assert not list(root.iter("script"))
        assert name in "".join(root.itertext())


def test_long_names_are_cut_by_how_wide_they_are() -> None:
    assert shortened("cassette_player") == "cassette_player"
    assert shortened("x" * 18) == "x" * 15 + "…"
    assert shortened("鳥" * 18) == "鳥" * 7 + "…"
