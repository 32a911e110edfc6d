"""How the house is built: who may import whom, and how large its rooms may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "ui").rglob("*.py"), ROOT / "app.py"]
# What a folder of pipeline/ may import from the others; what is not named here may import all of them.
MAY_IMPORT = {
    "media": set(),
    "models": {"media"},
    "camera": {"media"},
    "depth": {"media", "models"},
    "masks": {"media", "models", "depth"},
    "known": {"camera", "media", "models"},
    "prior": {"models", "media", "depth"},
    "method": {"known", "prior", "scene", "media", "camera"},
    "finish": {"known", "camera", "media"},
    "scene": {"media", "models", "camera", "depth"},
    "world": {"camera", "media"},
}
HEAVY = ("diffusers", "transformers", "scipy", "numba")  # they take seconds to import
LIGHT = ("training", "evaluation", "world")  # where that does not matter: no page waits for these


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[tuple[ast.stmt, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_one_way(file):
    here = module_of(file).split(".")
    for node, name in imports(file):
        there = name.split(".")
        where = f"{file.relative_to(ROOT)}:{node.lineno} imports {name}"
        if here[0] == "pipeline":
            assert there[0] not in ("ui", "app", "gradio"), where
            if there[0] == "pipeline" and len(there) > 1 and len(here) > 1 and here[1] in MAY_IMPORT:
                inside = {folder.name for folder in (ROOT / "pipeline").iterdir() if folder.is_dir()}
                assert there[1] not in inside - MAY_IMPORT[here[1]] - {here[1]}, where
            if len(here) > 1 and here[1] not in ("training", "evaluation", "cli"):
                assert there[:2] not in (["pipeline", "training"], ["pipeline", "evaluation"]), where
            if here[1:2] == ["evaluation"]:
                assert there[:2] != ["pipeline", "training"], where
            if here[1:2] == ["training"] and there[:2] == ["pipeline", "evaluation"]:
                assert there[2] == "judge", where
        # of mask_encoder a class is theirs, of kernel everything is compiled
        if (
            there[0] in HEAVY
            and here[1:2] not in [[name] for name in LIGHT]
            and here[-1] not in ("mask_encoder", "kernel")
        ):
            assert node.col_offset > 0, f"{where}, which takes seconds, when it is imported itself"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_rooms_are_small(file):
    text = file.read_text()
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 90, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


def private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


@cache
def private_names() -> set[str]:
    """All that are defined in the program: functions, classes, variables and attributes."""
    found: set[str] = set()
    for node in (node for file in FILES for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if private(name)}


@pytest.mark.parametrize("file", [*FILES, *(ROOT / "tests").rglob("*.py")], ids=module_of)
def test_private_names_stay_in_their_file(file):
    tests = file.is_relative_to(ROOT / "tests")
    for node in ast.walk(ast.parse(file.read_text())):
        if tests and isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            assert node.attr not in private_names(), f"line {node.lineno} reads {node.attr}"
        if tests and isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            names = {value for one in node.args if private(value := getattr(one, "value", None))}
            assert not names & private_names(), f"line {node.lineno} names {', '.join(names)}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pipeline", "ui"):
            theirs = [alias.name for alias in node.names if private(alias.name)]
            assert not theirs, f"line {node.lineno} imports {', '.join(theirs)}"
