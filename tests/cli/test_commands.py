"""The commands as a person types them: exit codes, what stands on which stream, one sentence for a mistake."""

from __future__ import annotations

import csv
import errno
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.cli.main import main


@dataclass
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


Type = Callable[..., Said]
TOY = ("--weights", "none", "--architecture", "ViT-Ti/16", "--resolution", "32", "--method", "probe")


@pytest.fixture
def vitrail(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type ``vitrail`` and some words."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vitrail", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        seen = capfd.readouterr()
        assert "Traceback" not in seen.err
        return Said(int(stopped.value.code or 0), seen.out, seen.err)

    return run


def _photos(folder: Path, counts: dict[str, int]) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3)) + 60 * label
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _photos(tmp_path_factory.mktemp("data") / "photos", {"dark": 10, "grey": 10, "light": 10})


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    from vitrail.tasks.finetune import finetune

    finetune(data, out, weights="none", architecture="ViT-Ti/16", method="probe", resolution=32, quiet=True)
    return out


def test_finetune_shows_its_plan_and_its_result(vitrail: Type, data: Path, tmp_path: Path) -> None:
    said = vitrail("finetune", data, "--out", tmp_path / "run", *TOY)
    assert said.code == 0
    assert said.out == ""
    for expected in (
        "held out",
        "stratified, 20 % held out, seed 0",
        "GFLOP",
        "tokens",
        "95 % interval",
    ):
        assert expected in said.err, expected
    assert len(said.err.splitlines()) <= 45, "about two screens"


def test_finetune_json_is_one_document_and_nothing_else(vitrail: Type, data: Path, tmp_path: Path) -> None:
    said = vitrail("finetune", data, "--out", tmp_path / "run", *TOY, "--json")
    document = json.loads(said.out)
    assert said.code == 0
    assert {"top1", "interval", "per_class", "minutes", "folder"} <= set(document)


def test_evaluate_json_has_the_documented_keys(vitrail: Type, data: Path, run: Path) -> None:
    said = vitrail("evaluate", run, data, "--json", "--quiet")
    document = json.loads(said.out)
    assert said.err == ""
    assert {"top1", "top5", "interval", "per_class", "calibration_error", "images_per_second"} <= set(document)
    assert document["images"] == 30
    assert document["interval"][0] <= document["top1"] <= document["interval"][1]
    assert "accuracy" in vitrail("evaluate", run, data).out


def test_evaluate_says_what_was_trained_on(vitrail: Type, data: Path, run: Path) -> None:
    everything = vitrail("evaluate", run, data, "--json")
    assert json.loads(everything.out)["trained_on"] == 24
    assert "trained on 24 of these 30 pictures" in everything.err
    held_out = vitrail("evaluate", run, run / "split.csv", "--json")
    assert json.loads(held_out.out)["trained_on"] == 0
    assert "trained on" not in held_out.err


def test_predict_table_json_and_csv_agree(vitrail: Type, data: Path, run: Path) -> None:
    words = ("predict", run, data / "dark" / "0.jpg", data / "light", "--top", 2)
    document = json.loads(vitrail(*words, "--json").out)
    rows = list(csv.DictReader(io.StringIO(vitrail(*words, "--csv").out)))
    table = vitrail(*words)
    assert table.code == 0
    assert len(document["predictions"]) == len(rows) == len(table.out.splitlines()) == 11
    for entry, row, line in zip(document["predictions"], rows, table.out.splitlines(), strict=True):
        assert entry["path"] == row["path"]
        assert [label["label"] for label in entry["labels"]] == [row["label_1"], row["label_2"]]
        assert row["label_1"] in line
        assert float(row["probability_1"]) == pytest.approx(entry["labels"][0]["probability"], abs=1e-6)


def test_predict_gives_a_reason_for_every_failure_and_exits_1(vitrail: Type, run: Path, tmp_path: Path) -> None:
    folder = _photos(tmp_path / "more", {"x": 2})
    (folder / "x" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "x" / "empty.png").touch()
    said = vitrail("predict", run, folder, "--json")
    document = json.loads(said.out)
    assert said.code == 1
    assert len(document["predictions"]) == 2
    assert {Path(entry["path"]).name for entry in document["failed"]} == {"broken.jpg", "empty.png"}
    said = vitrail("predict", run, folder)
    assert said.code == 1
    assert "not read: zero bytes" in said.out
    assert "2 of 4 could not be read" in said.err
    assert vitrail("predict", run, folder, "--csv").code == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_names_that_are_not_text(vitrail: Type, data: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    picture = (data / "dark" / "0.jpg").read_bytes()
    odd = ["\udcff.jpg", "two\nlines.jpg", "\x1b[31mred.jpg", "\u732b.jpg"]
    for name in odd:
        (folder / name).write_bytes(picture)
    table = vitrail("predict", run, folder)
    assert (table.code, len(table.out.splitlines())) == (0, 4)
    assert "\x1b" not in table.out
    document = json.loads(vitrail("predict", run, folder, "--json").out)
    assert sorted(Path(entry["path"]).name for entry in document["predictions"]) == sorted(odd)
    assert len(list(csv.reader(io.StringIO(vitrail("predict", run, folder, "--csv").out)))) == 5
    for ending in ("npz", "parquet"):
        assert vitrail("embed", run, folder, "--out", tmp_path / f"f.{ending}", "--json").code == 0
    for name in ("a", "b"):
        _photos(tmp_path / "train", {name: 4})
    (tmp_path / "train" / "a" / odd[0]).write_bytes(picture)
    said = vitrail("finetune", tmp_path / "train", "--out", tmp_path / "out", *TOY, "-q")
    assert said.code == 2
    assert "is not UTF-8: rename it" in said.err


def test_an_ascii_terminal_is_no_reason_to_stop(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "\u732b"
    folder.mkdir()
    (folder / "1.jpg").write_bytes((data / "dark" / "0.jpg").read_bytes())
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for words in ([], ["--json"], ["--csv"]):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
        monkeypatch.setattr(sys, "argv", ["vitrail", "predict", str(run), str(folder), *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        sys.stdout.flush()
        assert not stopped.value.code
        assert b"u732b" in out.getvalue()


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_predict_prints_nothing_when_there_is_nothing(vitrail: Type, run: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "empty").mkdir()
    said = vitrail("predict", run, tmp_path / "empty", form)
    assert (said.code, said.out) == (2, "")
    assert "There are no pictures" in said.err


def test_embed_writes_both_formats(vitrail: Type, data: Path, run: Path, tmp_path: Path) -> None:
    assert vitrail("embed", run, data, "--out", tmp_path / "f.npz", "-q").code == 0
    with np.load(tmp_path / "f.npz") as file:
        names, features = file["paths"], file["features"]
    assert features.shape[0] == len(names) == 30
    assert vitrail("embed", run, data, "--out", tmp_path / "f.parquet", "-q", "--json").code == 0
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table["path"].to_pylist() == list(names)
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), features)


def test_embed_leaves_the_old_file_when_nothing_can_be_read(vitrail: Type, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    out.write_bytes(b"old")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    said = vitrail("embed", run, bad, "--out", out)
    assert (said.code, out.read_bytes()) == (2, b"old")
    assert "None of the 1 pictures" in said.err


def _mistakes(folder: Path, run: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    """Name -> words, and what the sentence must say."""
    (folder / "empty").mkdir()
    good = _photos(folder / "good", {"a": 4, "b": 4})
    (folder / "folder" / "model").mkdir(parents=True)
    (folder / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json")
    out = ("--out", folder / "out")
    return {
        "missing folder": (("finetune", folder / "nowhere", *out, *TOY), "There is no folder"),
        "empty folder": (("finetune", folder / "empty", *out, *TOY), "holds no pictures"),
        "one class": (("finetune", _photos(folder / "one", {"a": 5}), *out, *TOY), "class"),
        "one image": (
            ("finetune", _photos(folder / "few", {"a": 5, "b": 1}), *out, *TOY),
            "class 'b' has too few pictures",
        ),
        "unreadable weights": (("finetune", good, *out, "--weights", folder / "broken.safetensors"), "damaged"),
        "no model folder": (("finetune", good, *out, "--weights", folder / "folder"), "config.json does not exist"),
        "unknown weights": (("finetune", good, *out, "--weights", "dinov2-smal"), "the nearest is dinov2-small"),
        "unknown model": (
            ("finetune", good, *out, "--weights", "none", "--architecture", "ViT-B16"),
            "the nearest is ViT-B/16",
        ),
        "no whole patches": (
            ("finetune", good, *out, "--weights", "none", "--architecture", "ViT-S/14", "--resolution", "225"),
            "the nearest sizes are 224 and 238",
        ),
        "no resolution": (("finetune", good, *out, *TOY[:4], "--resolution", "large"), "is not a resolution"),
        "run folder exists": (("finetune", good, "--out", run, *TOY), "exists already"),
        "unknown device": (("finetune", good, *out, *TOY, "--device", "abacus"), "no device 'abacus'"),
        "device without numbers": (("finetune", good, *out, *TOY, "--device", "meta"), "no device 'meta'"),
        "seed": (("finetune", good, *out, *TOY, "--seed", "-1"), "seed must be 0 or more"),
        "val fraction": (("finetune", good, *out, *TOY, "--val-fraction", "1.5"), "must lie between 0 and 1"),
        "unknown classes": (("evaluate", run, good), "which the model does not know"),
        "flat folder": (("evaluate", run, good / "a"), "no class folders"),
        "no such picture": (("predict", run, folder / "no.jpg"), "no file or folder"),
        "no ending": (("embed", run, good, "--out", folder / "out"), ".npz or .parquet"),
        "both formats": (("predict", run, good, "--csv", "--json"), "exclude each other"),
        "no such model": (("predict", folder / "nowhere", good), "There are no weights"),
        "no such backend": (("predict", run, good, "--runtime", "opnvino"), "the nearest is openvino"),
        "no such precision": (("evaluate", run, good, "--runtime", "onnx:int4"), "no precision 'int4'"),
        "int8 without a build": (
            ("embed", run, good, "--out", folder / "f.npz", "--runtime", "openvino:int8"),
            "run vitrail tune with",
        ),
        "tuning what is in no folder": (("tune", "none", "--data", good), "none is no folder of a model of ours"),
    }


def test_every_mistake_gets_one_sentence_and_leaves_nothing(vitrail: Type, run: Path, tmp_path: Path) -> None:
    for name, (words, expected) in _mistakes(tmp_path, run).items():
        before = sorted(tmp_path.rglob("*"))
        said = vitrail(*words, "--quiet")
        assert said.code == 2, name
        assert said.out == "", name
        assert expected in said.err, f"{name}: {said.err}"
        assert len(said.err.splitlines()) == 1, f"{name}: {said.err}"
        assert sorted(tmp_path.rglob("*")) == before, name


def test_words_that_are_no_options_exit_2(vitrail: Type) -> None:
    assert vitrail("finetun").code == 2
    assert vitrail("finetune", "x", "--out", "y", "--weight", "z").code == 2


def test_help_of_finetune_fits_two_screens_and_explains_every_option(
    vitrail: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = vitrail("finetune", "--help").out.splitlines()
    assert len(lines) <= 48
    options = [line for line in lines if line.startswith("  -")]
    assert len(options) > 10
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  -"):
            assert len(line.split("  ")) > 2 or following.startswith(" " * 20), line


def test_version(vitrail: Type) -> None:
    from vitrail import __version__

    assert vitrail("--version").out == f"vitrail {__version__}\n"


def test_inspect_writes_a_folder_and_says_where(vitrail: Type, data: Path, tmp_path: Path) -> None:
    toy = ("none", "--architecture", "ViT-Ti/16", "--resolution", "32")
    parts = ("--part", "attention-distance", "--part", "patch-filters")
    said = vitrail("inspect", *toy, data, *parts, "--out", tmp_path / "in", "--limit", 4, "--json")
    assert said.code == 0
    result = json.loads(said.out)
    assert result["images"] == 4
    assert list(result["findings"]) == ["attention-distance", "patch-filters"]
    assert (tmp_path / "in" / "inspect.html").is_file()
    again = vitrail("inspect", *toy, data, "--out", tmp_path / "in")
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("R50", "DATA", "--part", "attention-distance"), "R50, random weights has no attention, and no positions"),
        (("TOY", "DATA", "--layer", "13"), "There is no layer 13: the model has layers 1 to 12"),
        (("TOY", "DATA", "--part", "distance"), "There is no part 'distance'; the nearest is attention-distance"),
        (("TOY", "--part", "attention-maps"), "attention-maps needs pictures: name some files"),
        (("TOY", "nowhere"), "There is no file or folder nowhere: check the path"),
        (("TOY", "BROKEN"), "cannot be read"),
        (("nothing-at-all", "DATA"), "nothing-at-all"),
    ],
)
def test_inspect_refuses_in_a_sentence(
    vitrail: Type, data: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    known = {"DATA": [str(data)], "BROKEN": [str(broken)]}
    known["TOY"] = ["none", "--architecture", "ViT-Ti/16", "--resolution", "32"]
    typed = [word for name in words for word in known.get(name, [name])]
    said = vitrail("inspect", *typed, "--out", tmp_path / "out", "--quiet")
    assert said.code == 2
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_few_shot_shows_a_row_for_each_number_and_its_interval(vitrail: Type, data: Path) -> None:
    words = ("few-shot", "none", data, "--architecture", "ViT-Ti/16", "--resolution", "32", "--shots", 1, "--shots", 4)
    said = vitrail(*words, "--seeds", 2, "--quiet")
    assert said.code == 0
    assert "95 %, 2 draws" in said.out
    assert "±" in said.out
    assert "±" not in vitrail(*words, "--seeds", 1, "--quiet").out
    assert [row["shots"] for row in json.loads(vitrail(*words, "--json", "--quiet").out)["shots"]] == [1, 4]
    said = vitrail(*words, "--shots", 99)
    assert said.code == 2
    assert "fewer than 99 shots" in said.err


def test_a_suite_that_does_not_fit_its_name_is_a_sentence(vitrail: Type, data: Path, tmp_path: Path) -> None:
    for name in ("cifar100", "imagenet", "pets", "cifar1000"):
        said = vitrail("suite", name, data, "--out", tmp_path / "x.csv")
        assert said.code == 2, name
        assert len(said.err.strip().splitlines()) <= 3, said.err
    assert not (tmp_path / "x.csv").exists()
    said = vitrail("suite", "cifar100", data, "--out", tmp_path / "x")
    assert said.code == 2
    assert "does not end in .csv" in said.err


def test_reproduce_lists_what_there_is_and_wants_pictures(vitrail: Type) -> None:
    said = vitrail("reproduce", "?")
    assert (said.code, said.err) == (0, "")
    assert {"patch-size", "noisy-student"} <= set(said.out.split())
    said = vitrail("reproduce", "patch-size")
    assert said.code == 2
    assert said.err.startswith("vitrail: No pictures are named: say --data")


def test_what_the_system_forbids_is_a_sentence(
    vitrail: Type, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/closed/place")

    monkeypatch.setattr("vitrail.tasks.convert.convert", closed)
    said = vitrail("convert", "none", tmp_path / "out", "--to", "timm")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "vitrail: /closed/place is closed to you (Permission denied): choose another place, or ask for access.\n"
    )
