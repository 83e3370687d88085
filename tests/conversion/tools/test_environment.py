"""Tool environments, really made, from a wheelhouse of one tiny wheel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeserve.conversion.tools.environment import (
    ToolEnvironment,
    cache_root,
    list_environments,
    remove_environments,
)
from edgeserve.errors import ToolEnvironmentError, UsageError
from tests.conversion.wheels import write_wheel

SLOW_INSTALL = """
import sys
from edgeserve.conversion.tools.environment import ToolEnvironment
ToolEnvironment("tool", ("tinytool==1.0",)).ensure(lambda what, share: print(what, flush=True))
"""


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a wheelhouse with `tinytool`."""
    wheelhouse = tmp_path / "wheelhouse"
    write_wheel(wheelhouse, "tinytool", "ANSWER = 42\n")
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGESERVE_WHEELHOUSE", str(wheelhouse))
    return wheelhouse


def tool(*requires: str) -> ToolEnvironment:
    return ToolEnvironment("tool", requires or ("tinytool==1.0",))


class Said(list[str]):
    def __call__(self, what: str, share: float | None) -> None:
        self.append(what)


def answer(python: Path) -> str:
    code = "import tinytool; print(tinytool.ANSWER)"
    run = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_made_on_first_use_reused_listed_removed(tmp_path: Path) -> None:
    said = Said()
    python = tool().ensure(said)
    assert answer(python) == "42"
    assert said == ["creating the tool environment tool", "tool: installing 1 packages"]
    said.clear()
    assert tool().ensure(said) == python
    assert not said
    (record,) = list_environments()
    assert (record.name, record.requires, record.complete) == ("tool", ("tinytool==1.0",), True)
    assert record.size_bytes > 0
    remove_environments("tool")
    assert not list_environments()
    assert not python.exists()


def test_other_requirements_make_another_environment() -> None:
    assert tool().path != tool("tinytool==2.0").path
    assert tool().path != ToolEnvironment("tool", ("tinytool==1.0",), ("--pre",)).path


def test_an_impossible_requirement_is_told_in_pips_words(tmp_path: Path) -> None:
    with pytest.raises(ToolEnvironmentError, match="cannot be created") as raised:
        tool("tinytool==9.9").ensure(Said())
    assert "No matching distribution found for tinytool==9.9" in str(raised.value.cause)
    assert "lacks a wheel" in str(raised.value.hint)
    assert not tool("tinytool==9.9").path.exists()


def test_a_wheelhouse_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESERVE_WHEELHOUSE", "/nowhere/wheels")
    with pytest.raises(ToolEnvironmentError) as raised:
        tool().ensure(Said())
    assert "/nowhere/wheels" in str(raised.value.cause)


def test_no_network_says_how_to_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGESERVE_WHEELHOUSE")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ToolEnvironmentError) as raised:
        tool().ensure(Said())
    assert "EDGESERVE_WHEELHOUSE" in str(raised.value.hint)


def test_an_unwritable_cache_says_where_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ToolEnvironmentError) as raised:
        tool().ensure(Said())
    assert "EDGESERVE_CACHE_DIR" in str(raised.value.hint)


def test_a_killed_creation_is_made_anew() -> None:
    environment = tool()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_INSTALL], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # "creating …"
    while not environment.path.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not environment.complete
    assert [r.complete for r in list_environments()] == [False]
    assert answer(environment.ensure(Said())) == "42"


def test_two_processes_make_one_environment() -> None:
    makers = [
        subprocess.Popen([sys.executable, "-c", SLOW_INSTALL], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [maker.communicate()[0] for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0]
    assert sum("creating" in text for text in said) == 1
    assert answer(tool().python) == "42"


def test_an_environment_in_use_is_not_removed() -> None:
    with (
        tool().in_use(Said()),
        pytest.raises(ToolEnvironmentError, match="is in use"),
    ):
        remove_environments("tool")
    assert tool().complete


def test_removing_what_is_not_there_suggests_the_nearest() -> None:
    tool().ensure(Said())
    with pytest.raises(UsageError) as raised:
        remove_environments("tol")
    assert raised.value.hint == "did you mean 'tool'?"


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("EDGESERVE_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "edgeserve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "edgeserve"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_root() == tmp_path / "Library" / "Caches" / "edgeserve"
