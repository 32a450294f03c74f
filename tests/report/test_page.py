"""The page: everything that is known is on it, nothing that is a name becomes markup, nothing is asked of a network."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitrail.evaluate.metrics import evaluate_logits
from vitrail.report import page
from vitrail.report.page import MOST_PICTURES, Album, Mistake, Photo, render
from vitrail.report.run import Alike, Candidate, Epoch, Predicted, Result, Run, Suspected, Unreadable

STRANGE = ["<script>alert(1)</script>", "\"quoted\" & 'so'", "קטן \u202e", "🦆 {{ 7 * 7 }}", "x" * 300]
VOID = {"meta", "link", "img", "br"}
PIXEL = "data:image/jpeg;base64,AAAA"


class Seen(HTMLParser):
    """Collects tags, text and attributes; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def a_run(names: list[str], photos: int = 8, **changes: object) -> Run:
    """A run of some photos a class, every fifth of them mistaken for the next class."""
    labels = np.repeat(np.arange(len(names)), photos)
    answers = np.where(np.arange(len(labels)) % 5, labels, (labels + 1) % len(names))
    evaluation = evaluate_logits(np.eye(len(names))[answers], labels, names)
    result = Result(
        evaluation.images, evaluation.top1, evaluation.interval, evaluation.per_class, evaluation.confusion,
        top5=evaluation.top5, trained_on=100, minutes=2.5, method="full",
    )  # fmt: skip
    rows = [
        Predicted(f"/photos/{names[label]}/{number}.jpg", names[label], names[answer], 0.5 + number % 50 / 100)
        for number, (label, answer) in enumerate(zip(labels, answers, strict=True))
    ]
    run = Run(
        folder=Path("runs/some run"),
        about={
            "vitrail": "0.1.0",
            "torch": "2",
            "finetune": {"data": "my photos", "weights": "none", "method": "auto"},
        },
        result=result,
        candidates=[Candidate(("class",), 1, 0.8, 0.5), Candidate(("class", "mean"), 2, 0.9, 0.4)],
        epochs=[Epoch(1, 2.0, 0.4, None), Epoch(2, 1.0, 0.6, 0.7)],
        unreadable=[Unreadable(f"/photos/{names[0]}.jpg", "zero bytes")],
        counts={name: (20 + place, photos) for place, name in enumerate(names)},
        root="/photos",
        predictions=rows,
        suspects=[Suspected(f"/photos/{names[0]}/s.jpg", names[0], names[1], 0.01, 0.97)],
        near_duplicates=[Alike(f"/photos/{names[0]}/a.jpg", "/photos/b.jpg", 0.99, names[0], names[1], "train/val")],
        problems={},
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def an_album(run: Run) -> Album:
    def photo(path: str) -> Photo:
        return Photo(run.shown(path), PIXEL)

    return Album(
        [Mistake(row, photo(row.path), photo(row.path)) for row in page.mistakes(run)[:MOST_PICTURES]],
        [(row, photo(row.path)) for row in run.suspects[:MOST_PICTURES]],
        [(row, photo(row.path_a), Photo("b.jpg", None, "no such file")) for row in page.pairs(run)[:MOST_PICTURES]],
    )


def test_a_run_is_told_in_full() -> None:
    run = a_run(["cat", "dog", "bird"])
    seen = Seen(render(run, an_album(run), "a model of 12 layers"))
    assert run.result is not None
    text = " ".join(seen.text.split())
    for said in (
        "79.2 % of 24 held-out photos are classified correctly", "a model of 12 layers", "training the whole model",
        "63 photos of 3 classes to train on, 20 to 22 a class", "24 photos held out, 8 a class", "zero bytes",
        "favours class and mean of the last 2 layers", "2.5 min", "--method full", "All 5 mistakes",
        "1 pair stands across", "no such file", "vitrail predict",
    ):  # fmt: skip
        assert said in text, said
    assert sum(tag == "section" for tag, _ in seen.tags) == 9
    assert sum(attributes.get("class") == "heat" for _, attributes in seen.tags) == 1


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    run = a_run(["cat", "dog"])
    text = render(run, an_album(run))
    seen = Seen(text)
    for tag, attributes in seen.tags:
        assert tag not in {"script", "iframe", "object", "embed", "audio", "video", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in {"src", "href", "srcset", "xlink:href", "data"}:
                assert str(value).startswith(("data:", "#")), value
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_every_picture_has_words_and_every_column_a_heading() -> None:
    run = a_run(["cat", "dog"])
    seen = Seen(render(run, an_album(run)))
    for tag, attributes in seen.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in {"row", "col"}
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
    identities = {attributes["id"] for _, attributes in seen.tags if "id" in attributes}
    assert {str(a["href"])[1:] for tag, a in seen.tags if tag == "a"} <= identities
    assert {a["aria-labelledby"] for _, a in seen.tags if "aria-labelledby" in a} <= identities


@pytest.mark.parametrize("name", STRANGE)
def test_names_stay_text(name: str) -> None:
    run = a_run([name, "b"])
    seen = Seen(render(run, an_album(run), name))
    assert seen.text.count(name) >= 5
    assert not any(tag == "script" for tag, _ in seen.tags)
    assert any(attributes.get("alt") == f"{name}, taken for b" for _, attributes in seen.tags)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=2, max_size=3, unique=True))
def test_any_name_leaves_the_page_in_order(names: list[str]) -> None:
    run = a_run(names, photos=2)
    Seen(render(run, an_album(run)))


def test_a_thousand_classes_do_not_explode() -> None:
    run = a_run([f"class number {number}" for number in range(1000)], photos=5)
    text = render(run, an_album(run))
    assert len(text) < 1_000_000
    seen = Seen(text)
    assert not any(attributes.get("class") == "heat" for _, attributes in seen.tags)
    assert "960 further classes" in seen.text
    assert "are too many to draw" in seen.text


def test_a_run_with_nothing_in_it_says_so() -> None:
    names = ("config.yaml", "metrics.jsonl", "split.csv", "predictions.csv", "suspects.csv", "near_duplicates.csv")
    run = Run(
        Path("run"), {}, None, [], [], [], {}, "", [], [], [], {name: f"This run has no {name}." for name in names}
    )
    text = Seen(render(run, Album([], [], []))).text
    assert "This run has no result" in text
    for name in names:
        assert f"This run has no {name}." in text


def test_nothing_wrong_is_said_in_words() -> None:
    run = a_run(["cat", "dog"], suspects=[], near_duplicates=[], unreadable=[])
    right = replace(run, predictions=[row for row in run.predictions if row.label == row.predicted])
    text = Seen(render(right, Album([], [], []))).text
    for said in ("Not one held-out photo", "No training photo's label", "No two photos", "Every file could be read"):
        assert said in text


def test_both_sides_of_the_temperature_are_drawn_where_both_are_known() -> None:
    run = a_run(["cat", "dog"])
    assert run.result is not None
    rows = [replace(row, unscaled=min(1.0, row.confidence + 0.1)) for row in run.predictions]
    text = Seen(render(replace(run, predictions=rows, result=replace(run.result, temperature=1.5)), an_album(run))).text
    assert text.count("Expected calibration error") == 2
    assert "a temperature of 1.50" in text
    assert Seen(render(run, an_album(run))).text.count("Expected calibration error") == 1


def test_mistakes_come_surest_first_and_duplicates_across_the_split_first() -> None:
    run = a_run(["cat", "dog"], photos=50)
    sure = [row.confidence for row in page.mistakes(run)]
    assert sure == sorted(sure, reverse=True)
    assert all(row.label != row.predicted for row in page.mistakes(run))
    alike = [
        Alike("a", "b", similarity, "x", "x", parts)
        for similarity, parts in ((0.99, "train/train"), (0.97, "train/val"), (0.98, "val/train"), (0.96, "val/val"))
    ]
    found = page.pairs(replace(run, near_duplicates=alike))
    assert [pair.similarity for pair in found] == [0.98, 0.97, 0.99, 0.96]


def test_the_most_confused_are_the_largest_off_the_diagonal() -> None:
    found = page.most_confused(["a", "b", "c"], ((5, 2, 0), (0, 9, 3), (1, 0, 1)))
    assert [(pair.label, pair.predicted, pair.count, pair.total) for pair in found] == [
        ("b", "c", 3, 12),
        ("a", "b", 2, 7),
        ("c", "a", 1, 2),
    ]


def test_the_command_quotes_what_a_shell_would_split() -> None:
    about = {
        "finetune": {"data": "my photos", "weights": "w", "seed": 0, "resolution": [112, 168], "tuning": {"mixup": 0}}
    }
    line = page.command(a_run(["a", "b"], about=about))
    assert line == ("vitrail finetune 'my photos' --weights w --seed 0 --resolution 112x168 --set mixup=0 --out AGAIN")
    assert line in Seen(render(a_run(["a", "b"], about=about), Album([], [], []))).text
