"""``vitrail recipes`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from vitrail.cli.main import main
from vitrail.recipes.index import RECIPES, recipe

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vitrail(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type ``vitrail recipes`` and some words in a terminal 160 columns wide: exit code, output, errors."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitrail", "recipes", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        seen = capfd.readouterr()
        return int(stopped.value.code or 0), seen.out, seen.err

    return run


def test_the_list_has_a_line_for_each(vitrail: Type) -> None:
    code, out, err = vitrail()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert (code, err) == (0, "")
    assert RECIPES.keys() <= lines.keys()
    assert lines["vit-h14-jft300m-to-cifar10"].split() == [
        *("vit-h14-jft300m-to-cifar10", "finetune", "CIFAR-10", "99.50", "ViT,", "table", "2")
    ]
    assert "85.30 ?" in lines["vit-l16-imagenet21k"], "an unverified figure is marked"


def test_names_are_whole_in_a_narrow_terminal(vitrail: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = vitrail()
    assert set(RECIPES) <= set(out.split())


def test_one_in_full_is_headed_by_its_command(vitrail: Type) -> None:
    code, out, err = vitrail("vit-b16-imagenet21k")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "$ vitrail pretrain DATA --recipe vit-b16-imagenet21k"
    assert lines[1] == "pretrain ViT-B/16 on ImageNet-21k (arXiv 2010.11929, table 3)"
    rows = {line.split()[0]: line for line in lines[2:]}
    assert rows["weight_decay"].split() == ["weight_decay", "0.03", "table", "3"]
    assert "assumed: " in rows["mixup"]
    assert recipe("vit-b16-imagenet21k").settings().keys() <= rows.keys()


def test_json_is_one_document(vitrail: Type) -> None:
    _, out, _ = vitrail("--json")
    assert [entry["name"] for entry in json.loads(out)] == list(RECIPES)
    _, out, err = vitrail("mae-b16-imagenet", "--json")
    document = json.loads(out)
    assert err == ""
    assert document["objective"]["arguments"]["hidden"] == 0.75
    assert document["steps"] == 500_000
    assert "learning_rate" in document["assumed"]


def test_an_unknown_name_is_one_sentence(vitrail: Type) -> None:
    code, out, err = vitrail("vit-b16-imagnet")
    assert (code, out) == (2, "")
    assert err == "vitrail: There is no recipe 'vit-b16-imagnet'; the nearest is vit-b16-imagenet.\n"


def test_listing_needs_no_torch() -> None:
    code = "import sys, vitrail.recipes.index as i, vitrail.recipes.toy; i.recipes(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
