"""What benchmarks make of numbers: which ratios count, and which have fallen. Nothing is timed here."""

from __future__ import annotations

import pytest

from benchmarks import inference, training
from benchmarks.results_file import fallen

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
