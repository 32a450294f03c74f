"""LoRA and kNN as methods of fine-tuning, settings that are words, and the plan of a run that is not begun."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

import vitrail
from tests.tasks.conftest import COLOURS
from vitrail.cost import parameters
from vitrail.data.preprocess import preprocess
from vitrail.data.read import read_image
from vitrail.errors import UserError
from vitrail.evaluate.knn import fit_neighbours
from vitrail.settings import FinetuneSettings
from vitrail.tasks.classifier import Classifier
from vitrail.tasks.dry_run import plan
from vitrail.tasks.finetune import Finetuned
from vitrail.weights.adapter import read_adapter
from vitrail.weights.store import read_model

LORA: dict[str, Any] = {"method": "lora:2", "epochs": 3, "batch_size": 8, "quiet": True}
LAYERS, WIDTH = 3, 24


@pytest.fixture(scope="module")
def adapted(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    tuning = {"learning_rate": 0.01, "lora_roles": ["q", "v", "fc2"], "lora_alpha": 4}
    return vitrail.finetune(photos, tmp_path_factory.mktemp("lora") / "run", weights=weights, tuning=tuning, **LORA)


@pytest.fixture(scope="module")
def probed(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    out = tmp_path_factory.mktemp("probe") / "run"
    return vitrail.finetune(photos, out, weights=weights, method="probe", quiet=True)


def _inputs(classifier: Classifier, photos: Path) -> torch.Tensor:
    paths = sorted((photos / "val").rglob("*.png"))
    return torch.stack([preprocess(read_image(path), classifier.card.preprocessing) for path in paths])


def test_lora_leaves_a_model_and_an_adapter_that_say_the_same(
    adapted: Finetuned, probed: Finetuned, photos: Path
) -> None:
    """The adapter on the probe's model, which is where training began, is the merged model."""
    merged = vitrail.load(adapted.folder)
    assert merged.card.provenance["finetuned"] == "lora:2"
    assert merged.evaluate(photos / "val").evaluation.top1 == adapted.evaluation.top1
    base = vitrail.load(probed.folder)
    images = _inputs(base, photos)
    with torch.inference_mode():
        before = base.model(images)
        config = read_adapter(adapted.folder / "adapter", base.model)
        assert (config.rank, config.alpha, config.roles) == (2, 4.0, ("q", "v", "fc2"))
        after, wanted = base.model(images), merged.model(images)
    torch.testing.assert_close(after, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, wanted, atol=1e-2), "it has learned something"


def test_lora_changes_its_matrices_and_the_classifier_alone(adapted: Finetuned, probed: Finetuned) -> None:
    (_, after), (_, before) = (read_model(run.folder / "model") for run in (adapted, probed))
    for name, tensor in after.items():
        parts = zip(tensor.chunk(3), before[name].chunk(3), strict=True) if "qkv.weight" in name else ()
        if parts:
            assert [torch.equal(now, then) for now, then in parts] == [False, True, False], name
        else:
            learned = name.endswith("mlp.fc2.weight") or name.startswith("classifier.")
            assert torch.equal(tensor, before[name]) != learned, name


def test_lora_counts_what_it_trains(adapted: Finetuned) -> None:
    assert adapted.probe is not None
    assert adapted.trained is not None
    head = 3 * (adapted.probe.layers * len(adapted.probe.parts) * WIDTH + 1)
    low_rank = LAYERS * 2 * ((WIDTH + WIDTH) * 2 + (48 + WIDTH))
    assert adapted.trained.parameters == head + low_rank
    about = yaml.safe_load((adapted.folder / "config.yaml").read_text())
    assert about["lora"] == {"lora_alpha": 4.0, "lora_roles": ["q", "v", "fc2"], "lora_dropout": 0.0}
    assert (about["training"]["learning_rate"], about["training"]["layer_decay"]) == (0.01, 1.0)
    settings = json.loads((adapted.folder / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["modules_to_save"]) == (2, 4, ["classifier"])
    names = set(load_file(adapted.folder / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.encoder.blocks.2.attention.v.lora_B.weight" in names
    page = (adapted.folder / "report.html").read_text()
    assert "low-rank updates of rank 2" in page
    assert "lora_roles=q,v,fc2" in page


def test_lora_at_another_resolution(photos: Path, weights: Path, tmp_path: Path) -> None:
    options = {**LORA, "method": "lora", "epochs": 1, "resolution": "48x32"}
    run = vitrail.finetune(photos, tmp_path / "run", weights=weights, **options)
    assert run.method == "lora:8"
    assert vitrail.load(run.folder).card.architecture.grid == (3, 2)


def test_knn_votes_as_the_library_does_and_writes_no_model(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = vitrail.finetune(photos, tmp_path / "run", weights=weights, method="knn")
    assert run.findings.suspects == []  # votes are no probabilities to doubt a label by
    assert "--method probe writes one" in " ".join(capsys.readouterr().err.split())
    assert run.neighbours is not None
    classifier = vitrail.load(weights, quiet=True)
    features = {part: classifier.embed(photos / part) for part in ("train", "val")}
    labels = {
        part: np.array([list(COLOURS).index(p.parent.name) for p in found[0]]) for part, found in features.items()
    }
    known = fit_neighbours(features["train"][1].astype(np.float16), labels["train"], 3)
    votes = known.logits(features["val"][1].astype(np.float16))
    assert run.neighbours.k == known.k
    np.testing.assert_allclose(run.findings.logits, votes, atol=1e-3)
    assert run.evaluation.top1 == (votes.argmax(axis=1) == labels["val"]).mean()
    assert not (run.folder / "model").exists()
    assert {"report.html", "predictions.csv", "config.yaml"} < {path.name for path in run.folder.iterdir()}
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {event["k"]: event["accuracy"] for event in events if event["event"] == "neighbours"} == {
        choice.k: choice.accuracy for choice in known.left_out
    }
    page = (run.folder / "report.html").read_text()
    assert f"a vote of the {known.k} nearest training photos" in page
    assert "vitrail predict" not in page
    with pytest.raises(UserError, match="holds no model: one of --method knn never does"):
        vitrail.load(run.folder)


def test_a_class_with_nothing_held_out_is_said_and_does_not_stop_training(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    shutil.rmtree(copy / "val" / "red")
    run = vitrail.finetune(copy, tmp_path / "run", weights=weights, **{**LORA, "quiet": False})
    assert "no picture held out, so that nothing is measured on them: red" in " ".join(capsys.readouterr().err.split())
    assert [entry.accuracy is None for entry in run.evaluation.per_class] == [False, False, True]


def test_words_are_settings_too(photos: Path, weights: Path, tmp_path: Path) -> None:
    tuning = {"optimizer": "sgd", "schedule": "linear", "betas": [0.8, 0.9], "lora_roles": "v", "workers": 0}
    run = vitrail.finetune(photos, tmp_path / "run", weights=weights, tuning=tuning, **{**LORA, "epochs": 1})
    about = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (about["training"]["optimizer"], about["training"]["schedule"]) == ("sgd", "linear")
    assert (about["training"]["betas"], about["lora"]["lora_roles"]) == ([0.8, 0.9], ["v"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "lora:0"}, "There is no method 'lora:0'; the nearest is lora:8"),
        ({"tuning": {"lora_roles": ["q", "x"]}}, "should be one of 'q', 'k', 'v'"),
        ({"tuning": {"lora_role": "q"}}, "There is no setting 'lora_role'; the nearest is lora_roles"),
        ({"tuning": {"optimizer": "lion"}}, "should be one of 'adamw', 'sgd', not 'lion'"),
        ({"tuning": {"steps": 3}}, "steps is not among the settings of --set: it follows from --epochs"),
        ({"tuning": {"learning_rate": "much"}}, "field 'learning_rate' should be float, not 'much'"),
        ({"tuning": {"lora_alpha": -1}}, "alpha above 0"),
    ],
)
def test_wrong_settings_are_sentences(
    photos: Path, weights: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        vitrail.finetune(photos, tmp_path / "out", weights=weights, **{**LORA, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("path,name\nblue/0.png,blue\n", "lacks the column 'label'"),
        ("path,label\nblue/0.png,blue\nblue/0.png,red\n", "line 3, lists .* again with another label"),
        ("path,label\nblue/0.png,\n", "line 2, has an empty cell"),
        ("path,label\nblue/99.png,blue\n", "names pictures that are not there"),
    ],
)
def test_a_bad_file_of_labels_is_a_sentence(
    photos: Path, weights: Path, tmp_path: Path, table: str, sentence: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos / "train", data)
    (data / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=sentence):
        vitrail.finetune(data / "labels.csv", tmp_path / "out", weights=weights, **LORA)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["full", "layers:1", "lora:2", "probe", "knn"])
def test_a_plan_writes_nothing_and_says_what_the_run_then_does(
    method: str, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    settings = FinetuneSettings(str(photos), str(weights), method=method, epochs=2, batch_size=8)
    planned = plan(settings, quiet=True)
    assert not list(tmp_path.iterdir())
    assert (planned.method, planned.train, planned.held_out) == (method, 24, 12)
    assert planned.feature_seconds > 0
    config = vitrail.load(weights, quiet=True).card.architecture
    assert planned.memory_bytes > 4 * parameters(config)
    if method in ("probe", "knn"):
        assert planned.training_seconds is None
        return
    assert (planned.epochs, planned.steps) == (2, 6)
    assert planned.training_seconds is not None
    assert planned.training_seconds > 0
    (everything,) = (p for p in [plan(FinetuneSettings(str(photos), str(weights), method="full"), quiet=True)])
    assert everything.trained_parameters == parameters(config) + 3 * (WIDTH + 1)
    assert planned.trained_parameters is not None
    assert (planned.trained_parameters < everything.trained_parameters) == (method != "full")
