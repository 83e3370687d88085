"""The command line as a whole: light at start, errors and exit codes as documented."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import edgeserve
from edgeserve.cli.commands import command_line
from tests import commands

HEAVY = {
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "rich",
    "pydantic",
    "orjson",
    "msgspec",
    "psutil",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeserve", *arguments], capture_output=True, text=True
    )


def test_help_imports_nothing_heavy() -> None:
    """What makes `edgeserve --help` quick (measured by benchmarks/startup.py)."""
    code = (
        "import sys\nfrom edgeserve.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_other_commands_take_no_memory() -> None:
    code = (
        "import sys\nfrom edgeserve.cli.main import main\n"
        "try:\n    main(['-q', 'run', '--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "print(sorted(m for m in sys.modules if m in ('edgeserve.cli.run', 'edgeserve.cli.bench')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "['edgeserve.cli.run']"


def test_importing_edgeserve_imports_no_engine() -> None:
    code = "import sys, edgeserve; print(sorted(m for m in sys.modules if m.startswith(('numpy','onnx','openvino'))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_the_function_convert_survives_its_own_package() -> None:
    """Importing a submodule named like a function would shadow it (docs/decisions/0001)."""
    import edgeserve.conversion.pipeline

    assert callable(edgeserve.convert)
    assert callable(edgeserve.load)


def test_version_and_help() -> None:
    assert run("--version").stdout == f"edgeserve {edgeserve.__version__}\n"
    text = run("--help").stdout
    for command in (
        "convert",
        "bench",
        "gate",
        "run",
        "package",
        "inspect",
        "targets",
        "env",
        "demo",
    ):
        assert f"  {command} " in text


def test_every_command_says_in_a_whole_line_what_it_is_for_and_has_an_example() -> None:
    group: Any = typer.main.get_command(command_line())
    text = CliRunner().invoke(command_line(), ["--help"], terminal_width=80).output
    assert "..." not in text.partition("Commands:")[2]
    for name in group.commands:
        said = CliRunner().invoke(command_line(), [name, "--help"]).output
        assert f"Example: edgeserve {name}" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fly"], 2, "error: no such command 'fly'\nhint: edgeserve --help"),
        (
            ["gate", "m.edge", "--max-sise", "3"],
            2,
            "--max-size, --min-cosine)\nhint: edgeserve gate",
        ),
        (["convert"], 2, "error: missing argument 'MODEL'\nhint: edgeserve convert --help"),
        (["convert", "absent.onnx"], 2, "error: absent.onnx does not exist"),
        (
            ["convert", "absent.onnx", "--precision", "int3"],
            2,
            "error: invalid value for '--precision'",
        ),
        (["convert", "absent.onnx", "--shape", "x"], 2, "--shape x is not INPUT=N,N"),
        (["bench", "absent.edge"], 2, "hint: edgeserve convert"),
        (["gate", "absent.edge"], 2, "error:"),
        (["run", "absent.edge"], 2, "error: absent.edge does not exist"),
        (["package", "absent.edge", "-o", "out"], 2, "error: absent.edge does not exist"),
        (["inspect", "absent.onnx"], 2, "error:"),
        (["targets", "cpu-x68"], 2, "did you mean 'cpu-x86'?"),
    ],
)
def test_errors_say_what_and_exit_as_documented(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = commands.edgeserve(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_without_a_command_the_help_is_shown_and_exits_2() -> None:
    for arguments in ((), ("env",)):
        done = commands.edgeserve(*arguments, cwd=Path())
        assert done.returncode == 2
        assert (done.stdout + done.stderr).startswith("Usage: edgeserve")


def test_a_terminal_without_unicode_is_no_reason_to_fail() -> None:
    demo = Path(edgeserve.__file__).parent / "demo" / "files" / "digits.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "edgeserve", "inspect", str(demo)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"???" in done.stdout  # the line below the heads


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = commands.edgeserve("--debug", "convert", "absent.onnx", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_prints_a_script(shell: str) -> None:
    command = "from edgeserve.cli.main import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"_EDGESERVE_COMPLETE": f"source_{shell}"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_EDGESERVE_COMPLETE=complete_{shell}" in done.stdout


def test_shell_completion_completes_commands() -> None:
    command = "from edgeserve.cli.main import main; main([])"
    words = {
        "_EDGESERVE_COMPLETE": "complete_bash",
        "COMP_WORDS": "edgeserve ga",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, env=os.environ | words
    )
    assert (done.returncode, done.stdout.split()) == (0, ["gate"])
