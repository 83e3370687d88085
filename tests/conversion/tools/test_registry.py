"""Finding converters and running them, here and in a tool environment, with plug-ins made for the test."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.conversion.tools.registry import (
    GROUP,
    UnsupportedOperators,
    converter_called,
    converters,
    run_converter,
    runs_here,
    shortest_path,
)
from edgeserve.conversion.tools.reuse import reusing
from edgeserve.errors import DependencyMissing, ToolEnvironmentError, UnsupportedModel, UsageError
from tests.conversion.wheels import write_wheel
from tests.distributions import write_distribution

PLUGIN = """
from pathlib import Path


class Unknown(Exception):
    unsupported_ops = ["acme.Sparkle"]


class Base:
    pip_arguments = ()

    def __init__(self, name, source_format, output_format, imports=()):
        self.name = name
        self.source_format = source_format
        self.output_format = output_format
        self.imports = imports
        self.requires = tuple(f"{name}==1.0" for name in imports)

    def convert(self, source, out_dir, options):
        how = options.get("how")
        if how == "unknown op":
            raise Unknown("operator acme.Sparkle (node 'weird'): no rule")
        if how == "crash":
            import os
            print("about to crash")
            os.abort()
        if how == "full":
            raise OSError(28, "No space left on device", "weights.bin")
        if how == "bad":
            raise ValueError("the model has\\n  no heart")
        if how == "sleep":
            import time
            (out_dir / "started").touch()
            time.sleep(60)
        if how == "nothing":
            return []
        text = source.read_text() + self.output_format
        if how == "moment":
            import time
            text += str(time.time_ns())
        for name in self.imports:
            text += str(__import__(name).ANSWER)
        (out_dir / "out.txt").write_text(text)
        return [out_dir / "out.txt"]


A_B = Base("a-to-b", "a", "b")
B_C = Base("b-to-c", "b", "c")
C_D = Base("c-to-d", "c", "d")
A_C = Base("a-to-c", "a", "c")
D_D = Base("d-to-d", "d", "d", imports=("tinytool",))
"""
ENTRIES = """
a-to-b = plugs:A_B
b-to-c = plugs:B_C
c-to-d = plugs:C_D
a-to-c = plugs:A_C
d-to-d = plugs:D_D
broken = plugs:NOT_THERE
"""


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = write_distribution(tmp_path / "site", "plugs", GROUP, ENTRIES, PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    write_wheel(tmp_path / "wheelhouse", "tinytool", "ANSWER = 42\n")
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGESERVE_WHEELHOUSE", str(tmp_path / "wheelhouse"))
    sys.modules.pop("plugs", None)
    converters.cache_clear()
    yield
    converters.cache_clear()
    sys.modules.pop("plugs", None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    file = tmp_path / "model.txt"
    file.write_text("source ")
    return file


def quiet(what: str, share: float | None) -> None:
    pass


def run(name: str, source: Path, how: str = "", *, tool_env: bool = True) -> str:
    files = run_converter(
        converter_called(name),
        source,
        source.parent / "out",
        {"how": how},
        tool_env=tool_env,
        say=quiet,
    )
    return files[0].read_text()


def test_the_shortest_path_wins() -> None:
    assert [c.name for c in shortest_path("a", "d")] == ["a-to-c", "c-to-d"]


def test_no_path_lists_what_is_installed() -> None:
    with pytest.raises(UnsupportedModel, match="leads from d to a") as raised:
        shortest_path("d", "a")
    assert "a-to-b" in str(raised.value.hint)


def test_a_broken_plugin_is_left_out_aloud(caplog: pytest.LogCaptureFixture) -> None:
    assert "broken" not in [c.name for c in converters()]
    assert "the converter broken (plugs:NOT_THERE) cannot be loaded" in caplog.text


def test_an_unknown_converter_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as raised:
        converter_called("a-to-bb")
    assert raised.value.hint == "did you mean 'a-to-b'?"


def test_runs_here_when_it_can(source: Path) -> None:
    assert runs_here(converter_called("a-to-b"))
    assert run("a-to-b", source, tool_env=False) == "source b"


def test_runs_in_its_environment_otherwise(source: Path) -> None:
    assert not runs_here(converter_called("d-to-d"))
    assert run("d-to-d", source) == "source d42"
    assert "tinytool" not in sys.modules


def test_without_tool_environments_the_pip_command_is_told(source: Path) -> None:
    with pytest.raises(DependencyMissing) as raised:
        run("d-to-d", source, tool_env=False)
    assert str(raised.value.hint).startswith("pip install tinytool==1.0")
    assert "the tool environment d-to-d" in str(raised.value.hint)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("name", ["a-to-b", "d-to-d"])
def test_errors_are_the_same_here_and_there(source: Path, name: str) -> None:
    with pytest.raises(UnsupportedOperators, match=r"operator acme\.Sparkle") as unknown:
        run(name, source, "unknown op")
    assert unknown.value.ops == ["acme.Sparkle"]
    assert "node 'weird'" in str(unknown.value.cause)
    with pytest.raises(UnsupportedModel, match="failed on model") as bad:
        run(name, source, "bad")
    assert bad.value.cause == "ValueError: the model has no heart"
    with pytest.raises(OSError, match="No space left") as full:
        run(name, source, "full")
    assert str(full.value) == f"[Errno {errno.ENOSPC}] No space left on device: 'weights.bin'"
    with pytest.raises(UnsupportedModel, match="failed on model"):
        run(name, source, "nothing")


def test_a_crash_leaves_its_last_words(source: Path) -> None:
    with pytest.raises(ToolEnvironmentError, match="killed by SIGABRT") as raised:
        run("d-to-d", source, "crash")
    assert "about to crash" in str(raised.value.cause)


RUN_SLEEPER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
from pathlib import Path
from tests.conversion.tools.test_registry import run
sys.path.insert(0, sys.argv[1])
run("d-to-d", Path(sys.argv[2]), "sleep")
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_the_converter_dies_with_its_parent(source: Path, signal_number: int) -> None:
    run("d-to-d", source)  # makes the environment
    parent = subprocess.Popen(
        [sys.executable, "-c", RUN_SLEEPER, str(source.parent / "site"), str(source)],
        stderr=subprocess.DEVNULL,
    )
    started = source.parent / "out" / "started"
    _wait_for(started.exists)
    (child,) = _children(parent.pid)
    parent.send_signal(signal_number)
    parent.wait(10)
    _wait_for(lambda: not Path(f"/proc/{child}/exe").exists())


def _wait_for(condition: object, seconds: float = 15) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_environment_variables_do_not_leak_into_the_environment(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = source.parent / "fake"
    fake.mkdir()
    (fake / "tinytool.py").write_text("ANSWER = 'from PYTHONPATH'\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fake)]))
    assert run("d-to-d", source) == "source d42"


def test_within_one_command_the_same_is_converted_once(source: Path) -> None:
    again = source.parent / "elsewhere"
    (again / "out").mkdir(parents=True)
    (again / source.name).write_text(source.read_text())
    with reusing():
        first = run("a-to-b", source, "moment")
        assert run("a-to-b", again / source.name, "moment") == first
        assert run("b-to-c", source, "moment") != first
        source.write_text("another source ")
        assert run("a-to-b", source, "moment") != first
    assert run("a-to-b", again / source.name, "moment") != first


def test_what_tool_environments_make_is_kept_too(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    with reusing():
        first = run("d-to-d", Path(source.name), "moment")
        shutil.rmtree("out")
        Path("out").mkdir()
        assert run("d-to-d", Path(source.name), "moment") == first
