"""The page of an inspection: what is packed comes out again, what is said is true, and no name becomes markup."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.report.explorer import BUDGET, MOST, Explorer, ExplorerPhoto, TokenGrid
from vitrail.report.inspection import Drawing, Inspection, Picture, Section, render

VOID = {"meta", "link", "img", "br", "input"}
PIXEL = "data:image/jpeg;base64,AAAA"
STRANGE = ["</script><script>alert(1)</script>", "\"quoted\" & 'so'", "<!--<script>", "קטן \u202e", "{{ 7 * 7 }}"]
SVG = '<svg width="360pt" height="180pt" viewBox="0 0 360 180"><text>x</text></svg>'


class Seen(HTMLParser):
    """Collects tags, text and scripts; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
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
        if "script" in self.open:
            name = str(self.tags[-1][1].get("id", ""))
            self.scripts[name] = self.scripts.get(name, "") + data
        elif "style" not in self.open:
            self.text += data

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts["explorer-told"])
        return found


def inflated(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def unpacked(seen: Seen, photo: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The maps of a photo as the format's words have them: numbers (maps, n, T + 3) and levels (maps, n, cells)."""
    told = seen.told
    cells = (len(told["rows"]) - 1) * (len(told["columns"]) - 1)
    wide, n = len(told["special"]) + 3, len(told["special"]) + cells
    maps = told["layers"] * told["maps"] + told["rollout"]
    held = inflated(seen.scripts[f"explorer-attention-{photo}"])
    end = maps * n * wide * 2
    numbers = [int.from_bytes(held[at : at + 2], "little") / 65535 for at in range(0, end, 2)]
    levels = [level for byte in held[end:] for level in (byte % 16, byte // 16)]
    padded = cells + cells % 2
    assert len(levels) == maps * n * padded
    return np.reshape(numbers, (maps, n, wide)), np.reshape(levels, (maps, n, padded))[..., :cells]


def attended(shape: tuple[int, ...], seed: int, sharp: float = 2.0) -> np.ndarray:
    logits = sharp * np.random.default_rng(seed).standard_normal(shape)
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(-1, keepdims=True), np.float32)


def an_explorer(
    tokens: TokenGrid, layers: int = 2, heads: int = 2, names: tuple[str, ...] = ("a.jpg",), **options: Any
) -> Explorer:
    photos = []
    for seed, name in enumerate(names):
        attention = attended((layers, heads, tokens.tokens, tokens.tokens), seed)
        rollout = tokens.pack(attended((1, tokens.tokens, tokens.tokens), 99))
        photos.append(ExplorerPhoto(name, PIXEL, [tokens.pack(layer) for layer in attention], rollout))
    return Explorer(tokens, photos, **options)


def page(explorer: Explorer | None, *sections: Section, budget: int = BUDGET, **options: Any) -> Seen:
    options = {"model": "toy", "facts": [("width", "8")], "images": 3} | options
    return Seen(render(Inspection(sections=sections, explorer=explorer, **options), budget))


@settings(max_examples=25)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    cell=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    special=st.lists(st.sampled_from(["class", "register"]), max_size=3),
    layers=st.integers(1, 2),
    heads=st.integers(1, 3),
    sharp=st.floats(0, 8),
    seed=st.integers(0, 1000),
)
def test_what_is_packed_comes_out_again(
    grid: tuple[int, int],
    cell: tuple[int, int],
    special: list[str],
    layers: int,
    heads: int,
    sharp: float,
    seed: int,
) -> None:
    tokens, T = TokenGrid(grid, cell, tuple(special)), len(special)
    attention = attended((layers, heads, tokens.tokens, tokens.tokens), seed, sharp)
    rollout = attended((1, tokens.tokens, tokens.tokens), seed + 1, sharp)
    photo = ExplorerPhoto("a", PIXEL, [tokens.pack(layer) for layer in attention], tokens.pack(rollout))
    numbers, levels = unpacked(page(Explorer(tokens, [photo])))
    given_maps = np.concatenate([attention.reshape(-1, *rollout.shape[1:]), rollout]).astype(np.float64)
    assert len(numbers) == layers * heads + 1
    assert np.abs(numbers[..., :T] - given_maps[..., :T]).max(initial=0) < 1e-5
    largest = given_maps[..., T:].max(-1)
    assert np.abs(numbers[..., T] - largest).max() < 1e-5
    roots = np.sqrt(given_maps[..., T:] / largest[..., None])
    assert np.abs(levels / 15 - roots).max() <= 0.5 / 15 + 1e-4  # half a step of the square root
    diagonal = math.hypot(grid[0] * cell[0], grid[1] * cell[1])
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    for query, (row, column) in enumerate(places):
        near = [abs(row - r) <= 2 and abs(column - c) <= 2 for r, c in places]
        away = [math.hypot((row - r) * cell[0], (column - c) * cell[1]) for r, c in places]
        shares = given_maps[:, T + query, T:]
        assert np.abs(numbers[:, T + query, T + 1] - shares @ near).max() < 1e-5
        assert np.abs(numbers[:, T + query, T + 2] * diagonal - shares @ away).max() < 1e-4 * diagonal
    assert not numbers[:, :T, T + 1 :].any()  # a special token stands nowhere


def blocks(patches: int) -> list[range]:
    """The cells of one side, from a page."""
    edges = page(an_explorer(TokenGrid((1, patches), (1, 1), ()), 1, 1)).told["columns"]
    return [range(*pair) for pair in itertools.pairwise(edges)]


@pytest.mark.parametrize("patches", [1, 15, 16, 17, 24, 31, 32, 33, 37, 150])
def test_blocks_cover_the_grid_and_are_even(patches: int) -> None:
    found = blocks(patches)
    assert [patch for block in found for patch in block] == list(range(patches))
    assert len(found) <= MOST
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert max(map(len, found)) == math.ceil(patches / MOST)  # no coarser than it must be


def test_a_fine_grid_is_summed_over_keys_and_averaged_over_queries() -> None:
    tokens, T = TokenGrid((18, 33), (4, 2), ("class", "register")), 2
    attention = attended((1, tokens.tokens, tokens.tokens), 0)
    pooled = tokens.pooled(attention)
    assert tokens.shown == (9, 11)
    assert pooled.shape == (1, 101, 101)
    np.testing.assert_allclose(pooled.sum(-1), 1, atol=1e-5)
    members = [[0], [1]]
    for rows, columns in itertools.product(blocks(18), blocks(33)):
        members.append([T + row * 33 + column for row in rows for column in columns])
    for query, key in [(0, 0), (0, 50), (1, 100), (7, 1), (2, 2), (30, 77), (100, 3)]:
        mean = sum(float(attention[0, i, j]) for i in members[query] for j in members[key]) / len(members[query])
        assert float(pooled[0, query, key]) == pytest.approx(mean, rel=1e-4)
    # Nearness and distance stay those of single patches.
    packed = tokens.pack(attention)
    place = [divmod(token - T, 33) for token in range(tokens.tokens)]
    near = far = 0.0
    for i, j in itertools.product(members[40], range(T, tokens.tokens)):
        (row, column), (r, c) = place[i], place[j]
        near += float(attention[0, i, j]) * (abs(row - r) <= 2 and abs(column - c) <= 2) / len(members[40])
        far += float(attention[0, i, j]) * math.hypot(4 * (row - r), 2 * (column - c)) / len(members[40])
    assert packed.numbers[1, 40, 3] / 65535 == pytest.approx(near, abs=1e-5)
    assert packed.numbers[1, 40, 4] / 65535 * math.hypot(72, 66) == pytest.approx(far, abs=2e-3)


def test_the_page_says_that_it_shows_blocks() -> None:
    said = page(an_explorer(TokenGrid((18, 33), (4, 2)), 1, 1)).text
    assert "The 18x33 patches are shown in 9x11 blocks of 2 x 3 patches" in said
    assert "blocks" not in page(an_explorer(TokenGrid((4, 4), (4, 4)), 1, 1)).text


def test_attention_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(K, 5, 5\) is wanted, not \(2, 4, 4\)"):
        TokenGrid((2, 2), (4, 4)).pack(attended((2, 4, 4), 0))


def test_positions_are_averaged_over_blocks_and_keep_their_sign() -> None:
    tokens = TokenGrid((2, 20), (4, 4))
    vectors = np.random.default_rng(0).standard_normal((40, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    told = page(an_explorer(tokens, 1, 1, similarity=vectors @ vectors.T)).told["similarity"]
    values = np.frombuffer(inflated(told["values"]), np.int8).reshape(20, 20) / 127
    members = [[row * 20 + column for column in (pair, pair + 1)] for row in range(2) for pair in range(0, 20, 2)]
    for i, j in itertools.product(range(20), repeat=2):
        mean = np.mean([vectors[a] @ vectors[b] for a in members[i] for b in members[j]])
        assert values[i, j] == pytest.approx(mean, abs=0.5 / 127 + 1e-6)
    assert told["lowest"] == pytest.approx(values.min(), abs=1 / 127)


def test_the_budget_first_costs_photos_and_then_heads() -> None:
    tokens = TokenGrid((8, 8), (4, 4))
    explorer = an_explorer(tokens, 2, 6, ("a", "b", "c"))

    def kept(budget: int) -> tuple[Seen, list[str]]:
        seen = page(explorer, budget=budget)
        return seen, [text for name, text in seen.scripts.items() if "attention" in name]

    seen, texts = kept(BUDGET)
    assert (len(texts), seen.told["maps"]) == (3, 6)
    assert "To keep this page small" not in seen.text
    two = len(texts[0]) + len(texts[1]) + 2 * len(PIXEL)
    for budget, photos in ((two, 2), (two - 1, 1)):
        seen, texts = kept(budget)
        assert (len(texts), seen.told["maps"], seen.told["photos"]) == (photos, 6, ["a", "b"][:photos])
        assert f"{3 - photos} more {'photo is' if photos == 2 else 'photos are'} left out" in seen.text
    seen, texts = kept(len(texts[0]))  # less than one photo with all heads, picture included
    assert (seen.told["maps"], seen.told["heads"]) == (1, 6)
    assert 0 < sum(map(len, texts)) + len(texts) * len(PIXEL) <= len(kept(BUDGET)[1][0])
    assert "the 6 heads of a layer are shown as their mean" in seen.text
    layer = attended((2, 6, 65, 65), 0)[1].mean(0)
    numbers, _ = unpacked(seen)
    assert np.abs(numbers[1, :, 0] - layer[:, 0]).max() < 1e-5  # the mean of the heads, layer by layer
    seen, texts = kept(10)
    assert texts == []
    assert "One photo alone is more than this page should hold." in seen.text


def test_special_tokens_of_one_kind_are_numbered() -> None:
    told = page(an_explorer(TokenGrid((2, 2), (4, 4), ("class", "register", "register")), 1, 1)).told
    assert [token["name"] for token in told["special"]] == ["class", "register 1", "register 2"]
    assert [token["kind"] for token in told["special"]] == ["class", "register", "register"]


def a_section(text: str, **changes: Any) -> Section:
    drawing = Drawing("distance", SVG, text, text)
    values: dict[str, Any] = {"figures": [drawing], "facts": [(text, text)], "strips": [[Picture(text, PIXEL)]]}
    return Section("distance", text, **{"text": [text, "Another paragraph."], **values, **changes})


@pytest.mark.parametrize("name", STRANGE)
def test_names_stay_text(name: str) -> None:
    tokens = TokenGrid((2, 2), (4, 4), (name,))
    seen = page(an_explorer(tokens, 1, 1, (name, "b")), a_section(name), model=name, facts=[(name, name)])
    assert seen.text.count(name) >= 9
    assert seen.told["photos"] == [name, "b"]
    assert seen.told["special"] == [{"kind": name, "name": name}]
    scripts = [attributes.get("type") for tag, attributes in seen.tags if tag == "script"]
    assert scripts == ["application/json", "text/plain", "text/plain", "module"]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
@settings(max_examples=15)
def test_any_name_leaves_the_page_in_order(name: str) -> None:
    seen = page(an_explorer(TokenGrid((1, 2), (4, 4)), 1, 1, (name,)), a_section(name))
    assert seen.told["photos"] == [name]


def test_a_section_that_could_not_be_made_says_why_and_nothing_else() -> None:
    section = a_section("Distance", absent="A CNN has no attention.")
    seen = page(None, section)
    assert "A CNN has no attention." in seen.text
    assert "Another paragraph." not in seen.text
    assert not any(tag in ("img", "figure") for tag, _ in seen.tags)
    assert "Another paragraph." in page(None, a_section("Distance")).text


def test_without_an_explorer_there_is_a_sentence_and_no_script() -> None:
    said = "A ResNet has no attention to explore."
    for explorer, reason in ((None, said), (Explorer(TokenGrid((2, 2), (4, 4)), []), "")):
        seen = page(explorer, no_explorer=reason)
        assert (reason or "There is no photo") in seen.text
        assert not any(tag in ("script", "canvas", "dialog") for tag, _ in seen.tags)


def test_the_page_asks_for_nothing() -> None:
    text = render(
        Inspection("toy", [], 3, [a_section("Distance")], an_explorer(TokenGrid((2, 2), (4, 4)), similarity=np.eye(4)))
    )
    seen = Seen(text)
    for tag, attributes in seen.tags:
        assert tag not in {"iframe", "object", "embed", "audio", "video", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in {"src", "href", "srcset", "xlink:href", "data"}:
                assert str(value).startswith(("data:", "#")), value
    policy = next(str(a["content"]) for _, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    for way in ("@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket", "import("):
        assert way not in text


def test_everything_has_a_name_and_every_reference_a_target() -> None:
    explorer = an_explorer(TokenGrid((2, 2), (4, 4)), names=("a", "b"), similarity=np.eye(4))
    text = render(Inspection("toy", [], 3, [a_section("Distance")], explorer))
    seen = Seen(text)
    identities = [str(attributes["id"]) for _, attributes in seen.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for tag, attributes in seen.tags:
        if tag in ("img", "canvas"):
            named = ("aria-label", "alt") if attributes.get("id") != "explorer-large-canvas" else ("aria-describedby",)
            assert any(attributes.get(name) for name in named), attributes
        for reference in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(reference, identities[0]) in identities
        if tag == "a":
            assert str(attributes["href"])[1:] in identities
    # What the script reaches for is there.
    wanted = set(re.findall(r'\bat\("([\w-]+)"\)', seen.scripts[""]))
    assert {f"explorer-{name}" for name in wanted} <= set(identities)
    assert len(wanted) > 15


def test_a_drawing_knows_how_wide_it_was_made() -> None:
    assert Drawing("a", SVG, "", "").width == 480.0  # 360 points
