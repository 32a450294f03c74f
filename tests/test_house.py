"""The walls: who may import whom, what no file may contain, and what starting up may load.

Every rule is a function from a project folder to a list of complaints. It is run twice: over this
project, where it must find nothing, and over small planted trees, where it must find the fault.
"""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = (
    *("errors", "atomic", "cache", "size", "parts", "cnn", "resnet", "efficientnet", "config", "settings", "record"),
    *("convolutions", "cost"),
)
ORDER = (
    *GROUND,
    *("recipes", "model", "weights", "data", "objectives", "downstream", "evaluate", "train", "analyze", "runtime"),
    *("report", "tasks", "serve", "experiments", "cli", "__main__"),
)
HEAVY = {"torch", "torchvision", "matplotlib", "pydantic", "sklearn", "transformers"}
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN = {
    "a folder beside the project": re.compile(r"\.\./sha[r]ed"),
    "a path of one machine": re.compile(r"(?<![\w.~*)}>])/(?:root|work|opt/pypi)\b"),
    "a package registry's host": re.compile(
        r"\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|debian\.org|download\.pytorch\.org)\b"
    ),
}
# CI alone may look for more data beside the project, and does without where there is none.
EXEMPT = {(".ci/run", "a folder beside the project")}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package under ``root``."""
    found = {}
    for path in sorted((root / "vitrail").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parsed(root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    """Name, file and syntax tree of every module."""
    for name, path in modules(root).items():
        yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted target of every import, wherever it stands: in a function, under TYPE_CHECKING, relative.

    A module named in a string counts too: that is how a lazy table or ``import_module`` would evade.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"vitrail\.[\w.]+", str(node.value)):
            yield node.lineno, str(node.value).rstrip(".")


def edges(root: Path) -> Iterator[tuple[str, int, str]]:
    """Importer, line and imported module, both ours; what a module offers is taken to be the module."""
    known = modules(root)
    for name, path, tree in parsed(root):
        for line, target in imports(name, path, tree):
            if target.split(".")[0] != "vitrail" or name == "vitrail" or target == "vitrail.__version__":
                continue
            while target not in known and "." in target:
                target = target.rpartition(".")[0]
            if target != name:
                yield name, line, target


def layers(root: Path) -> list[str]:
    """A module imports from the lines above its own in ORDER, or from its own folder."""
    found = []
    for name in modules(root):
        if name != "vitrail" and name.split(".")[1] not in ORDER:
            found.append(f"{name} stands on no line of the design")
    for name, line, target in edges(root):
        own = name.split(".")[1]
        if target == "vitrail":
            found.append(f"{name}:{line} goes through vitrail/__init__.py")
        elif target.split(".")[1] not in (own, *ORDER[: ORDER.index(own) if own in ORDER else None]):
            found.append(f"{name}:{line} imports {target}, which does not stand above {own}")
    return found


def cycles(root: Path) -> list[str]:
    """No module imports itself by way of others."""
    graph: dict[str, set[str]] = {}
    for name, _, target in edges(root):
        graph.setdefault(name, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def foreign(root: Path) -> list[str]:
    """model/ knows torch, torchvision and the ground floor alone; the ground floor and recipes/ are light."""
    found = []
    for name, path, tree in parsed(root):
        layer = [*name.split("."), ""][1]
        for line, target in imports(name, path, tree):
            top, below = [*target.split("."), ""][:2]
            if layer == "model" and top == "vitrail":
                wrong = below not in (*GROUND, "model", "__version__")
            elif layer == "model":
                wrong = top not in {"torch", "torchvision"} | sys.stdlib_module_names
            else:
                wrong = layer in ("", *GROUND, "recipes") and top in HEAVY
            if wrong:
                found.append(f"{name}:{line} imports {target}")
    return found


def listed(root: Path) -> list[Path]:
    """What is or would be committed: git's own list, or every file where there is no git."""
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(git, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = []
    paths = [root / name for name in names if name]
    if not paths:
        for folder, below, files in os.walk(root):
            below[:] = [name for name in below if name == ".ci" or not name.startswith((".", "__pycache__", "runs"))]
            paths += [Path(folder, name) for name in files]
    return sorted(path for path in paths if path.is_file())


def sizes(root: Path) -> list[str]:
    """No Python file over 400 lines, and none named after nothing."""
    found = []
    for path in listed(root):
        if path.suffix == ".py":
            if path.stem in {"utils", "util", "helpers", "common", "misc"}:
                found.append(f"{path.name} says nothing about what is in it")
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400:
                found.append(f"{path.name} has {lines} lines")
    return found


def leaks(root: Path) -> list[str]:
    """Nothing that is committed names what means nothing to its reader."""
    found = []
    for path in listed(root):
        where = path.relative_to(root).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for what, pattern in FORBIDDEN.items():
            if (match := pattern.search(text)) and (where, what) not in EXEMPT:
                found.append(f"{where}:{text.count(chr(10), 0, match.start()) + 1} names {what}")
    return found


def pickles(root: Path) -> list[str]:
    """No pickle: neither its modules, nor the readers and writers of other libraries that fall back on it."""
    found = []
    for name, path, tree in parsed(root):
        found += [f"{name}:{n} imports {t}" for n, t in imports(name, path, tree) if t.split(".")[0] in PICKLES]
        names = _aliases(tree)
        safe = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                safely = given.get("weights_only")
                if isinstance(safely, ast.Constant) and safely.value is True:
                    safe.add(node.func)
                allowed = given.get("allow_pickle", ast.Constant(False))
                if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                    found.append(f"{name}:{node.lineno} allows pickle")
        for node in ast.walk(tree):
            if isinstance(node, (ast.Attribute, ast.Name)):
                dotted = _dotted(node, names)
                if dotted == "torch.load" and node not in safe:
                    found.append(f"{name}:{node.lineno} uses torch.load without weights_only=True")
                elif dotted == "torch.save" or dotted.endswith((".read_pickle", ".to_pickle")):
                    found.append(f"{name}:{node.lineno} uses {dotted}")
    return found


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> what it was imported as."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``a.b.c`` with the local name for ``a`` resolved; the base is empty where it is not a name."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def docstrings(root: Path) -> list[str]:
    """Every module and every public class, function and method says what it is."""
    return [missing for name, _, tree in parsed(root) for missing in _undocumented(name, tree)]


def _undocumented(name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    found = [] if ast.get_docstring(node) else [f"{name} has no docstring"]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return found  # what a function defines inside itself is its own affair
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and child.name[0] != "_":
            found += _undocumented(f"{name}.{child.name}", child)
    return found


START = """
import json, sys
{code}
print()
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
IMPORT = "import vitrail"
HELP = """
from vitrail.cli.main import main
sys.argv = ["vitrail", "--help"]
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
else:
    raise AssertionError("--help should end the program")
"""


def heavy(root: Path, code: str) -> list[str]:
    """Which heavy libraries a fresh interpreter started in ``root`` has loaded after ``code``."""
    command = [sys.executable, "-c", START.format(code=code)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return sorted(HEAVY & set(json.loads(run.stdout.splitlines()[-1])))


Rule = Callable[[Path], list[str]]
RULES: list[Rule] = [layers, cycles, foreign, sizes, leaks, pickles, docstrings]
FAULTS: list[tuple[Rule, dict[str, str], str]] = [
    (layers, {"vitrail/config.py": "from vitrail.cost import flops"}, "config:1 imports vitrail.cost"),
    (layers, {"vitrail/model/a.py": "def f():\n    import vitrail.weights.load"}, "model.a:2 imports vitrail.weights"),
    (layers, {"vitrail/model/a.py": "if TYPE_CHECKING:\n    from ..tasks import b"}, "model.a:2 imports vitrail.tasks"),
    (layers, {"vitrail/data/a.py": "from .. import train"}, "data.a:1 imports vitrail.train"),
    (layers, {"vitrail/data/__init__.py": "from ..train import a"}, "data:1 imports vitrail.train"),
    (layers, {"vitrail/data/a.py": "import_module('vitrail.train.a')"}, "data.a:1 imports vitrail.train"),
    (layers, {"vitrail/data/a.py": "import_module(f'vitrail.train.{name}')"}, "data.a:1 imports vitrail.train"),
    (layers, {"vitrail/data/a.py": "from vitrail import finetune"}, "data.a:1 goes through"),
    (layers, {"vitrail/data/a.py": "import vitrail"}, "data.a:1 goes through"),
    (layers, {"vitrail/extras/a.py": ""}, "vitrail.extras.a stands on no line"),
    (
        cycles,
        {"vitrail/model/a.py": "from . import b", "vitrail/model/b.py": "def f():\n    from vitrail.model.a import g"},
        "vitrail.model.a imports vitrail.model.b",
    ),
    (
        cycles,
        {"vitrail/model/__init__.py": "from .a import f", "vitrail/model/a.py": "from vitrail.model import g"},
        "vitrail.model.a imports vitrail.model",
    ),
    (foreign, {"vitrail/model/a.py": "import numpy as np"}, "model.a:1 imports numpy"),
    (foreign, {"vitrail/model/a.py": "from vitrail.recipes import vit"}, "model.a:1 imports vitrail.recipes"),
    (foreign, {"vitrail/config.py": "def f():\n    from torch import nn"}, "config:2 imports torch"),
    (sizes, {"vitrail/model/helpers.py": ""}, "helpers.py says nothing"),
    (sizes, {"vitrail/model/a.py": "x = 1\n" * 401}, "a.py has 401 lines"),
    (leaks, {"README.md": "fine\nsee .." + "/shared/data"}, "README.md:2 names a folder beside"),
    (leaks, {"docs/a.md": "open /" + "root/x"}, "docs/a.md:1 names a path"),
    (leaks, {"vitrail/a.py": "path = '/" + "work/main'"}, "vitrail/a.py:1 names a path"),
    (leaks, {".ci/run": "cd /" + "work"}, ".ci/run:1 names a path"),
    (leaks, {"Makefile": "pip install -i https://" + "pypi" + ".org/simple"}, "Makefile:1 names a package registry"),
    (pickles, {"vitrail/data/a.py": "def f():\n    import pickle"}, "data.a:2 imports pickle"),
    (pickles, {"vitrail/data/a.py": "from joblib import dump"}, "data.a:1 imports joblib"),
    (pickles, {"vitrail/data/a.py": "import torch\ntorch.load(p)"}, "data.a:2 uses torch.load"),
    (pickles, {"vitrail/data/a.py": "import torch as t\nt.load(p, weights_only=False)"}, "data.a:2 uses torch.load"),
    (pickles, {"vitrail/data/a.py": "from torch import load as l\nmap(l, paths)"}, "data.a:2 uses torch.load"),
    (pickles, {"vitrail/data/a.py": "import torch\ntorch.save(m, p)"}, "data.a:2 uses torch.save"),
    (pickles, {"vitrail/data/a.py": "np.load(p, allow_pickle=True)"}, "data.a:1 allows pickle"),
    (pickles, {"vitrail/data/a.py": "np.load(p, allow_pickle=flag)"}, "data.a:1 allows pickle"),
    (docstrings, {"vitrail/data/a.py": "def f(): ..."}, "vitrail.data.a.f has no docstring"),
    (docstrings, {"vitrail/data/a.py": "class A:\n  'x'\n  def f(self): ..."}, "vitrail.data.a.A.f has no docstring"),
    (docstrings, {"vitrail/data/a.py": ""}, "vitrail.data.a has no docstring"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_project_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "files", "complaint"), FAULTS, ids=[f"{f[0].__name__}: {f[2]}" for f in FAULTS])
def test_the_rule_finds_a_planted_fault(
    rule: Rule, files: dict[str, str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # no repository around the planted tree
    for name in ("cost", "recipes/vit", "weights/load", "train/a", "tasks/b"):
        _write(tmp_path / "vitrail" / f"{name}.py", '"""x."""')
    _write(tmp_path / "vitrail/train/__init__.py", '"""x."""')
    for name, text in files.items():
        _write(tmp_path / name, text)
    assert any(complaint in found for found in rule(tmp_path)), rule(tmp_path)


def test_what_is_allowed_is_not_a_fault(tmp_path: Path) -> None:
    text = (
        '"""x."""\nimport math\nimport torch\nfrom vitrail.config import ViTConfig\nfrom vitrail import __version__\n'
        "from . import b\nfrom .b import f\ntorch.load(p, weights_only=True)\ntorch.hub.load(p)\n"
        "np.load(p, allow_pickle=False)\n"
    )
    _write(tmp_path / "vitrail/model/a.py", text)
    _write(tmp_path / "vitrail/model/b.py", '"""x."""')
    _write(tmp_path / "vitrail/config.py", '"""x."""')
    _write(tmp_path / ".ci/run", "ls .." + "/shared")
    _write(tmp_path / "README.md", "runs/work and ~/work and a/root: fine\n")
    assert [complaint for rule in RULES for complaint in rule(tmp_path)] == []


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import vitrail", "vitrail --help"])
def test_starting_up_loads_nothing_heavy(code: str) -> None:
    assert heavy(ROOT, code) == []


def test_a_heavy_import_at_start_up_is_found(tmp_path: Path) -> None:
    _write(tmp_path / "torch" / "__init__.py", "")
    assert heavy(tmp_path, "import torch") == ["torch"]


def test_no_test_reaches_the_network() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"a test reached for example\.org"):
        socket.create_connection(("example.org", 443))


def test_the_public_names_are_those_of_tasks() -> None:
    import vitrail

    for name in vitrail.__all__:
        assert getattr(vitrail, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fine_tune'"):
        _ = vitrail.fine_tune
