"""What the documentation names exists: files, functions, commands, options, and the Python in it runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main

from vitrail.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def _names(tree: ast.AST, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found |= {prefix + node.name} | _names(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign):
            found |= {prefix + target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(prefix + node.target.id)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`((?:vitrail|tests|benchmarks)/[\w/]+\.py)(?::([\w.]+))?`", text):
        assert (ROOT / file).is_file(), file
        if name:
            assert name in _names(ast.parse((ROOT / file).read_text(encoding="utf-8"))), f"{file}:{name}"
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"(?:^ {4}|`)vitrail ([^`\n#]+)", text, flags=re.MULTILINE):
        words = line.split()
        if words[0].startswith("-"):
            continue
        assert words[0] in commands, line
        known = {option for parameter in commands[words[0]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}, line


def test_every_section_of_the_article_is_there() -> None:
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for section in ("1.1", "1.2", "2.1", "2.2", "3.1", "3.2", "5.1", "6.1", "6.3"):
        assert f"| {section} " in text, section
    for equation in ("(1)", "(2)", "(3)", "(4)"):
        assert f"| {equation} " in text, equation
