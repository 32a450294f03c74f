"""What benchmarks make of numbers: which ratios count, and which have fallen. Nothing is timed here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import engines, inference, serving, training
from benchmarks.results_file import fallen
from vitrail.data.sources import Sample

SPEEDS = {
    "timm eager fp32": 3.0,
    "timm compiled bf16": 8.0,
    "onnxruntime int8": 10.0,
    "openvino int8": 16.0,
    "vitrail openvino:bf16": 9.0,
    "vitrail compiled:bf16": 8.5,
    "vitrail openvino:int8": 17.0,
    "vitrail merging 50 %": 32.0,
}


def test_ours_is_held_against_the_fastest_at_its_precision_and_merged_at_any() -> None:
    found = inference.ratios(SPEEDS)
    assert found == pytest.approx({"bf16": 9 / 8, "int8": 17 / 16, "merging 50 %": 2.0})


def test_what_has_fallen_is_named_whatever_the_machine_does_otherwise() -> None:
    before = inference.ratios(SPEEDS)
    half = inference.ratios({name: speed / 2 for name, speed in SPEEDS.items()})
    assert fallen(before, half, inference.MARGIN) == [], "a machine of half the speed has lost nothing"
    slower = inference.ratios({**SPEEDS, "vitrail openvino:bf16": 7.0, "vitrail compiled:bf16": 7.0})
    assert fallen(before, slower, inference.MARGIN) == ["bf16: 1.12 -> 0.88"]
    a_little = inference.ratios({**SPEEDS, "vitrail openvino:int8": 15.0})
    assert fallen(before, a_little, inference.MARGIN) == []
    gone = inference.ratios({name: speed for name, speed in SPEEDS.items() if "merging" not in name})
    assert fallen(before, gone, inference.MARGIN) == ["merging 50 %: 2.00 -> not measured"]


def test_training_is_checked_by_its_ratios() -> None:
    found = {
        "images_per_second": {},
        "to_fastest_peer": 1.3,
        "to_fastest_peer_not_fused": 1.0,
        "product_limit_gflops": 9,
    }
    assert training.ratios(found) == {"to_fastest_peer": 1.3, "to_fastest_peer_not_fused": 1.0}


@pytest.mark.parametrize("most", [5000, 20000, 46999])
def test_a_part_of_sorted_samples_has_every_class_alike(most: int) -> None:
    samples = [Sample(Path(f"{label}/{number}.png"), label) for label in range(10) for number in range(4700)]
    found = engines.spread(samples, most)
    counts = Counter(sample.label for sample in found)
    assert len(set(found)) == most
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_where_there_are_fewer_samples_all_are_taken(count: int) -> None:
    samples = [Sample(Path(f"{number}.png"), number) for number in range(count)]
    assert engines.spread(samples, 20) == samples


def test_what_is_not_measured_says_how_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "CELLS", tmp_path)
    assert serving.section() == "Not measured yet (`python -m benchmarks.serving`)."


def test_a_server_that_does_not_begin_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"did not begin: vitrail: .*nothing"),
        serving.serving(tmp_path / "nothing", "eager"),
    ):
        pass
