"""The documentation keeps its word: Python blocks run, commands and their flags exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from edgeserve.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/README.md")])
DATA = ROOT / "edgeserve" / "demo" / "files"


def command_lines(text: str) -> list[str]:
    """Lines of code blocks that call edgeserve, with continuations joined."""
    joined = text.replace("\\\n", " ")
    return [
        match[1].strip()
        for match in re.finditer(
            r"^(?: {4,}|\$ )?(?:\S+/)?(edgeserve [a-z].*)$", joined, re.MULTILINE
        )
    ]


def all_commands() -> list[tuple[str, str]]:
    return [(p.name, line) for p in PAGES for line in command_lines(p.read_text("utf-8"))]


@pytest.mark.parametrize(("page", "line"), all_commands())
def test_every_documented_command_and_flag_exists(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"[\[\]|`…]|\.\.\.", " ", line.partition("  #")[0]), comments=True)[
        1:
    ]
    group: Any = typer.main.get_command(app)
    while words and words[0].startswith("-"):
        words.pop(0)
    command = group
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command is not group, f"{page}: no such command in: {line}"
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    known |= {o for p in group.params for o in p.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{page}: {word} in: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_python_blocks_run(page: str, tmp_path: Path) -> None:
    """In a folder that holds what the blocks name, here the embedded digits."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks
    shutil.copy(DATA / "digits.onnx", tmp_path / "model.onnx")
    shutil.copy(DATA / "digits-calibration.npz", tmp_path / "calibration.npz")
    shutil.copy(DATA / "digits-samples.npz", tmp_path / "labelled.npz")
    for block in blocks:
        run = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
