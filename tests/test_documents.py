"""What the documents show works: the method in Python, the commands, the links."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli.parser import parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = [*sorted((ROOT / "assets").rglob("README.md"))]


def blocks(file: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", file.read_text(), re.M | re.S)


def test_the_method_in_ten_lines_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (shown,) = blocks(ROOT / "README.md", "python")
    smaller = shown.replace('camera="dolly-in",', 'camera="dolly-in", frames=5, size=(32, 64), steps=2,')
    assert smaller != shown
    there: dict = {}
    exec(compile(smaller, "README.md", "exec"), there)
    assert there["video"].shape == (5, 3, 32, 64)
    assert capsys.readouterr().out.splitlines()[-1].startswith("step 2 of 2")


def whole(block: str) -> list[str]:
    """Its lines, with those joined that end in a backslash."""
    return block.replace("\\\n", " ").splitlines()


def commands() -> list[str]:
    lines = [line for file in DOCUMENTS for block in blocks(file, "") for line in whole(block)]
    return [line for line in lines if line.startswith("python -m pipeline")]


@pytest.mark.parametrize("line", commands())
def test_commands_that_are_shown_are_understood(line):
    words = shlex.split(line.replace("[", "").replace("]", ""))
    if words[2] != "pipeline":
        assert importlib.util.find_spec(words[2]) is not None
    else:
        assert parser().parse_args(words[3:]).run


@pytest.mark.parametrize("file", [*DOCUMENTS, *CARDS], ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_names_of_files_lead_somewhere(file):
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (file.parent / link).exists(), link
    for name in re.findall(r"`((?:pipeline|ui|tests|assets)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    if file in DOCUMENTS:
        for name in re.findall(r"`([a-z_]+/[a-z_]+\.py)`", text):
            assert (ROOT / name).exists() or (ROOT / "pipeline" / name).exists(), name


def test_the_documents_are_short():
    lines = lambda name: (ROOT / name).read_text().count("\n")
    assert lines("README.md") <= 130 and lines("ARCHITECTURE.md") <= 150


def questions() -> dict[str, str]:
    """Of a newcomer, with their answers."""
    text = (ROOT / "ARCHITECTURE.md").read_text().partition("## A newcomer's questions")[2]
    return dict(re.findall(r"\*\*(.+?\?)\*\* (.+?)(?=\n\n|\Z)", text, re.S))


@pytest.mark.parametrize("question", questions())
def test_a_newcomer_finds_the_answer_in_two_files_at_most(question):
    """Each file that an answer names is there, and each function or table that it names stands in one of them."""
    answer = questions()[question]
    files = set(re.findall(r"`((?:pipeline|ui)/[\w/]+\.py)`", answer))
    assert 1 <= len(files) <= 2
    text = "".join((ROOT / file).read_text() for file in files)
    names = re.findall(r"`([A-Za-z_][\w.]*)`", answer)
    for name in (name for name in names if not name.endswith((".py", ".json"))):
        assert re.search(rf"\b{name.split('.')[-1]}\b", text), name


def test_what_newcomers_ask_is_answered():
    asked = " ".join(questions())
    for words in (
        "Eq. 8",
        "latent mask",
        "which frames",
        "solver",
        "camera preset",
        "depth model",
        "backbone",
        "preview",
    ):
        assert words in asked, words
