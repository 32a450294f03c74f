"""Checkpoints: what is read is what was written; what is damaged is passed over."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.toys import ALL_ON, Killed, Modular, begin, run, same, stop_at
from vitrail.errors import UserError
from vitrail.train import checkpoint

TENSORS = {
    "half": torch.randn(3, 4).bfloat16(),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "turned": torch.randn(4, 6).t(),
    "wide": torch.randn(1, 3).expand(2, 3),
    "none": torch.zeros(0, 3),
    "odd": torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45]),
}
FACTS = {"rate": 0.1 + 0.2, "words": "Vögel", "nested": {"list": [1, None, 1e-320]}}


def test_dtypes_strides_bits_and_facts_survive(tmp_path: Path) -> None:
    tied = {**TENSORS, "tied": TENSORS["half"]}
    path = checkpoint.write(tmp_path, 123, tied, FACTS)
    assert path.name == "step-00000123"
    found = checkpoint.read(path)
    assert (found.step, found.facts) == (123, FACTS)
    assert found.tensors.keys() == tied.keys()
    for name, tensor in tied.items():
        other = found.tensors[name]
        assert other.dtype == tensor.dtype, name
        assert other.stride() == tensor.stride() or name == "wide", name
        one, two = (t.contiguous().reshape(-1).view(torch.uint8) for t in (other, tensor))
        assert torch.equal(one, two), name


def test_a_state_is_restored_with_its_strides(tmp_path: Path) -> None:
    objective = Modular()
    one, other = begin(ALL_ON, objective), begin(ALL_ON, Modular())
    one.model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for tensor in one.tensors().values():
            tensor.copy_(torch.randn_like(tensor.double()))
    checkpoint.write(tmp_path, 5, one.tensors(), one.facts())
    found = checkpoint.read(checkpoint.place(tmp_path, 5))
    other.restore(found.step, found.tensors, found.facts)
    one.step = 5
    assert not one.tensors()["weights.model.patches.projection.weight"].is_contiguous()
    same(one, other)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for step in (1, 2, 3):
        checkpoint.write(folder, step, {**TENSORS, "step": torch.tensor(step)}, FACTS)
    return folder


@given(data=st.data())
def test_one_wrong_byte_anywhere_is_noticed(data: st.DataObject, three: Path) -> None:
    path = checkpoint.place(three, 3) / data.draw(st.sampled_from([checkpoint.TENSORS, checkpoint.FACTS]))
    whole = path.read_bytes()
    place, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    damaged = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    try:
        path.write_bytes(damaged)
        warnings: list[str] = []
        found = checkpoint.latest(three, warnings.append)
    finally:
        path.write_bytes(whole)
    assert found is not None
    # Space between values means nothing in JSON.
    blank = path.name == checkpoint.FACTS and found.step == 3
    assert (found.step == 2 and len(warnings) == 1) or (blank and found.facts == FACTS)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "state.json").write_text("[]"), "state.json cannot be understood"),
        (lambda path: (path / "state.json").write_bytes(b"\xff"), "state.json cannot be understood"),
        (lambda path: shorten(path / "state.json"), "state.json cannot be understood"),
        (lambda path: shorten(path / "tensors.safetensors"), "tensors.safetensors is not as it was written"),
        (lambda path: shutil.rmtree(path) or path.mkdir(), "state.json is missing"),
    ],
)
def test_what_is_damaged_is_passed_over_with_a_sentence(damage: Any, words: str, three: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(three, folder)
    damage(checkpoint.place(folder, 3))
    warnings: list[str] = []
    found = checkpoint.latest(folder, warnings.append)
    assert found is not None
    assert found.step == 2
    assert len(warnings) == 1
    assert words in warnings[0]
    assert warnings[0].endswith("; the checkpoint before it is taken.")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    settings = replace(ALL_ON, keep=4)
    whole = run(settings, tmp_path / "whole")
    for damaged in (1, 2):
        folder = tmp_path / str(damaged)
        with pytest.raises(Killed):
            run(settings, folder, stop_at(7))
        steps = checkpoint.steps_in(folder / "checkpoints")
        for step in steps[:damaged]:
            shorten(checkpoint.place(folder / "checkpoints", step) / "tensors.safetensors")
        warnings: list[str] = []
        same(run(settings, folder, warnings=warnings), whole)
        assert len(warnings) == damaged
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_when_none_is_sound_it_starts_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path / "a", stop_at(4))
    for path in (tmp_path / "a/checkpoints").glob("step-*/state.json"):
        path.unlink()
    warnings: list[str] = []
    same(run(ALL_ON, tmp_path / "a", warnings=warnings), run(ALL_ON))
    assert warnings[-1] == "No checkpoint is sound, so training starts again."


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.4}
    settings = replace(ALL_ON, checkpoint_every=1, evaluate_every=2, keep=3)
    run(settings, tmp_path, evaluate=lambda state: (scores[state.step], {}))
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [8, 7, 6, 4]
    assert not any((tmp_path / "checkpoints").glob(".*"))


def test_what_a_killed_process_left_half_done_is_swept_away(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(4))
    (tmp_path / "checkpoints/.step-00000005.abc.partial").mkdir()
    (tmp_path / "checkpoints/.step-00000001.old").mkdir()
    same(run(ALL_ON, tmp_path), run(ALL_ON))
    assert not any((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("file", ["tensors", "state", "metrics"])
def test_a_full_disk_is_a_sentence_and_what_was_there_is_still_good(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(5))
    before = checkpoint.steps_in(tmp_path / "checkpoints")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if file == "tensors":
            patch.setattr(checkpoint, "write_tensors", full)
        elif file == "state":
            patch.setattr(Path, "write_text", full)
        else:
            patch.setattr("vitrail.train.log.os.fsync", full)
        with pytest.raises(UserError, match=r"The disk is full while writing .*: free some space and run the same"):
            run(ALL_ON, tmp_path)
    assert checkpoint.steps_in(tmp_path / "checkpoints") == before
    assert not any((tmp_path / "checkpoints").glob(".*"))
    same(run(ALL_ON, tmp_path), run(ALL_ON, tmp_path / "whole"))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    path = checkpoint.write(tmp_path, 1, {}, {})
    assert json.loads((path / "state.json").read_text())["version"] == 2
    monkeypatch.setattr(checkpoint, "VERSION", 1)
    with pytest.raises(UserError, match="is of version 2: this Vitrail reads version 1"):
        checkpoint.latest(tmp_path, pytest.fail)
    assert path.is_dir(), "and it is not thrown away"


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_sound_one(tmp_path: Path) -> None:
    settings = replace(ALL_ON, keep=1, evaluate_every=0)
    with pytest.raises(Killed):
        run(replace(settings, keep=9), tmp_path, stop_at(7), evaluate=None)
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [6, 3]
    shorten(tmp_path / "checkpoints/step-00000006/state.json")
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path, stop_at(4, KeyboardInterrupt), evaluate=None)
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [6, 4]
    same(run(settings, tmp_path, evaluate=None), run(settings, evaluate=None))
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [8]
