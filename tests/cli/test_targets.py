"""`edgeserve targets`: what it prints, as JSON and for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgeserve.cli.main import main
from edgeserve.devices import machine
from edgeserve.runtimes.detect import detect_target
from edgeserve.targets import target_names
from tests.distributions import write_distribution

# A target of an adapter nobody has: what is printed of it is the same on every machine.
BOARD = """
name = "acme-board"
title = "ACME board, 1 GB"
arch = ["{arch}"]
url = "https://acme.example/board"
notes = "Needs the [ACME] driver."

[[chain]]
runtime = "acme"
device = "npu"
precisions = ["int8", "fp16"]
static_shapes = true
options = {{ tiles = 2, turbo = true }}

[quantization]
per_channel = false
activation_type = "int8"
symmetric_activations = true

[limits]
memory_mb = 256
"""
EXPLAINED = """\
target        acme-board: ACME board, 1 GB
architecture  {arch}
this machine  {machine}
not satisfied no runtime adapter is called acme
int8          weights int8 per tensor, activations int8 symmetric
memory        256 MB at most
notes         Needs the [ACME] driver.
more          https://acme.example/board

chain      precisions   shapes   options             opens here   what the engine says
────────────────────────────────────────────────────────────────────────────────────────────────────
acme/npu   int8 fp16    static   tiles=2 turbo=True  no           no runtime adapter is called acme

convert for it: edgeserve convert MODEL --target acme-board -o NAME.edge
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def squeezed(text: str) -> list[list[str]]:
    """Lines as words: tables are laid out by width, which is not what these tests are about."""
    return [line.split() for line in text.splitlines() if set(line.strip()) != {"─"}]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    file = tmp_path / "acme-board.toml"
    file.write_text(BOARD.format(arch=machine().arch))
    return file


def test_explains_a_target_of_one_s_own(capsys: pytest.CaptureFixture[str], board: Path) -> None:
    code, out, _ = run(capsys, "targets", str(board))
    assert code == 0
    wanted = EXPLAINED.format(arch=machine().arch, machine=machine().describe())
    assert squeezed(out) == squeezed(wanted)


def test_lists_every_target_and_marks_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "targets")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"this machine: {machine().describe()}"
    assert lines[-1] == "explain one: edgeserve targets NAME"
    rows = {line.split()[0]: line for line in lines if line.split()[:1] and line[0] != " "}
    assert set(target_names()) <= set(rows)
    assert " yes " in rows[detect_target().name]


def test_json_of_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "targets", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["machine"]["arch"] == machine().arch
    assert [t["target"]["name"] for t in report["targets"]] == list(target_names())
    satisfied = {t["target"]["name"] for t in report["targets"] if t["satisfied"]}
    assert detect_target().name in satisfied


def test_json_of_one(capsys: pytest.CaptureFixture[str], board: Path) -> None:
    code, out, _ = run(capsys, "targets", str(board), "--json")
    assert code == 0
    report = json.loads(out)
    assert report["target"]["limits"] == {"memory_mb": 256}
    assert report["satisfied"] is False
    assert report["entries"][0]["reason"] == "no runtime adapter is called acme"


def test_auto_is_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "targets", "auto", "--json")
    assert code == 0
    assert json.loads(out)["target"]["name"] == detect_target().name


def test_unknown_target_suggests_the_nearest_and_exits_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "targets", "intel-npuu")
    assert (code, out) == (2, "")
    assert err == (
        "error: unknown target 'intel-npuu'\n"
        f"hint: did you mean 'intel-npu'? known targets: {', '.join(target_names())}\n"
    )


def test_a_broken_toml_names_the_field_and_exits_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nmemory = 3\n')
    code, out, err = run(capsys, "targets", str(file))
    assert (code, out) == (2, "")
    assert err == (
        f"error: {file} is not a valid target\n"
        "cause: Object contains unknown field `memory`\n"
        "hint: known fields: name, title, arch, chain, quantization, limits, convert_only, url, "
        "notes\n"
    )


def test_targets_of_packages_are_listed(
    capsys: pytest.CaptureFixture[str],
    board: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = f"from pathlib import Path\nFOLDER = Path({str(board.parent)!r})\n"
    site = write_distribution(
        tmp_path / "site", "acme_list", "edgeserve.targets", "acme = acme_list:FOLDER", module
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "acme_list", raising=False)
    code, out, _ = run(capsys, "targets")
    assert code == 0
    assert "acme-board" in out
