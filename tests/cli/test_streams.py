"""Output that cannot be written ends with a clear code: real descriptors, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import linear_bundle

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")

EDGESERVE = f"{sys.executable} -m edgeserve"


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run in bash, where `edgeserve` is this one."""
    return subprocess.run(
        ["bash", "-c", command.replace("edgeserve ", f"{EDGESERVE} ", 1)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "80"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `m.edge`."""
    folder = tmp_path_factory.mktemp("streams")
    linear_bundle(folder, "m")
    return folder


COMMANDS = [
    "--version", "--help", "env list --json", "inspect m.edge", "targets --json",
    "gate m.edge --max-size 1",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_exit_3(folder: Path, command: str) -> None:
    done = shell(f"edgeserve {command} > /dev/full", folder)
    assert done.returncode == 3
    assert done.stderr.endswith(
        "error: the result cannot be written to stdout: No space left on device\n"
    )
    assert "Traceback" not in done.stderr
    assert "mistake" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS[1::2])
def test_a_closed_descriptor_is_one_line_and_exit_3(folder: Path, command: str) -> None:
    done = shell(f"edgeserve {command} >&-", folder)
    assert done.returncode == 3
    assert done.stderr.endswith("error: the result cannot be written to stdout: it is closed\n")


@pytest.mark.parametrize("command", COMMANDS[1::2])
def test_a_pipe_that_nobody_reads_is_quiet_and_exit_141(folder: Path, command: str) -> None:
    done = shell(f"edgeserve {command} | (exec <&-); exit ${{PIPESTATUS[0]}}", folder)
    assert (done.returncode, done.stderr) == (141, "")


def test_stderr_that_cannot_be_written_changes_nothing(folder: Path) -> None:
    for elsewhere in ("2>&-", "2>/dev/full"):
        assert shell(f"edgeserve inspect absent.onnx {elsewhere}", folder).returncode == 2
        done = shell(f"edgeserve inspect m.edge {elsewhere}", folder)
        assert done.returncode == 0
        assert "golden" in done.stdout


def test_no_stream_at_all(folder: Path) -> None:
    """The next file that is opened must not become the output."""
    assert shell("edgeserve inspect m.edge --json <&- >&- 2>&-", folder).returncode == 3
    assert shell("edgeserve inspect absent.onnx <&- >&- 2>&-", folder).returncode == 2


def test_a_file_on_a_full_disk_is_named(folder: Path) -> None:
    np.savez(folder / "x.npz", x=np.zeros((1, 4), np.float32))
    done = shell("edgeserve infer m.edge x.npz -o /dev/full", folder)
    assert done.returncode == 3, done.stderr
    assert "error: cannot write /dev/full" in done.stderr


def test_an_archive_does_not_take_the_place_of_a_device(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert shell("edgeserve archive m.edge -o pipe --force", folder).returncode == 2
    assert (folder / "pipe").is_fifo()
