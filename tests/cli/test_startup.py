"""What ``vitrail predict`` loads before its first picture, and how torch's threads wait."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from vitrail.tasks.classifier import load

PREDICT = """
import sys
from vitrail.cli.main import main
assert "torch" not in sys.modules
sys.argv = ["vitrail", "predict", *sys.argv[1:]]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
print("loaded", *sys.modules)
"""
NOT_NEEDED = {
    "torch._dynamo": "torch's compiler",
    "sympy": "torch's compiler",
    "scipy": "evaluation",
    "sklearn": "the probe",
    "onnx": "weights in a graph",
    "matplotlib": "figures",
    "torchvision": "nothing",
    "pyarrow": "tables",
}
"""Modules that take long to import, and what they are for."""


def test_python_runs_it_as_a_module() -> None:
    """``python -m vitrail`` is the command: its name in the usage, its exit codes."""
    started = subprocess.run([sys.executable, "-m", "vitrail", "shwo"], capture_output=True, text=True, check=False)
    assert started.returncode == 2
    assert "Usage: python -m vitrail" in started.stderr
    assert "No such command 'shwo'" in started.stderr


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model folder and a picture."""
    folder = tmp_path_factory.mktemp("startup")
    classifier = load("none", 32, architecture="ViT-Ti/16", classes=("red", "green"), quiet=True)
    torch.nn.init.normal_(classifier.model.classifier.weight)  # type: ignore[union-attr]
    classifier.save(folder / "model")
    Image.new("RGB", (40, 30), "red").save(folder / "red.jpg")
    return [str(folder / "model"), str(folder / "red.jpg")]


def predict(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, whose OpenMP tells its settings."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = {**inherited, "OMP_DISPLAY_ENV": "TRUE", **environment}
    return subprocess.run(
        [sys.executable, "-c", PREDICT, *words], check=True, capture_output=True, text=True, env=environment
    )


def test_predict_loads_no_more_than_it_needs_and_its_idle_threads_sleep(words: list[str]) -> None:
    done = predict(words)
    assert "red.jpg" in done.stdout
    loaded = done.stdout.rpartition("loaded ")[2].split()
    assert "torch" in loaded
    assert {name: reason for name, reason in NOT_NEEDED.items() if name in loaded} == {}
    assert re.search("OMP_WAIT_POLICY *= *'PASSIVE'", done.stderr)


def test_who_has_set_how_threads_wait_is_obeyed(words: list[str]) -> None:
    done = predict(words, OMP_WAIT_POLICY="active")
    assert re.search("OMP_WAIT_POLICY *= *'ACTIVE'", done.stderr)
