"""`edgeserve env` on environments made from a local wheelhouse."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgeserve.cli import env
from edgeserve.conversion.tools.registry import GROUP, converters
from edgeserve.errors import ToolEnvironmentError, UsageError
from tests.conversion.wheels import write_wheel
from tests.distributions import write_distribution

PLUGIN = """
class Demo:
    name, source_format, output_format = "demo-tool", "demo", "tool"
    requires, imports, pip_arguments = ("tinytool==1.0",), ("tinytool",), ()

CONVERTER = Demo()
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[typer.Typer]:
    site = write_distribution(
        tmp_path / "site", "demotool", GROUP, "demo-tool = demotool:CONVERTER", PLUGIN
    )
    write_wheel(tmp_path / "wheelhouse", "tinytool", "ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("EDGESERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGESERVE_WHEELHOUSE", str(tmp_path / "wheelhouse"))
    converters.cache_clear()
    application = typer.Typer()
    application.callback()(lambda: None)
    env.register(application)
    yield application
    converters.cache_clear()
    sys.modules.pop("demotool", None)


def test_create_list_remove(app: typer.Typer, tmp_path: Path) -> None:
    run = CliRunner().invoke
    before = run(app, ["env", "list"])
    assert "demo-tool" in before.stdout
    assert "an environment not made yet" in before.stdout

    made = run(app, ["env", "create", "demo-tool"])
    assert made.exit_code == 0
    assert made.stdout.startswith(f"made {tmp_path / 'cache' / 'envs' / 'demo-tool-'}")
    again = run(app, ["env", "create", "demo-tool"])
    assert again.stdout.startswith("demo-tool has its environment")

    listed = json.loads(run(app, ["env", "list", "--json"]).stdout)
    (record,) = listed["environments"]
    assert (record["name"], record["complete"]) == ("demo-tool", True)
    assert {"name": "demo-tool", "requires": ["tinytool==1.0"], "runs_here": False} in listed[
        "converters"
    ]

    removed = run(app, ["env", "remove", "demo-tool"])
    assert removed.stdout.startswith("removed ")
    assert json.loads(run(app, ["env", "list", "--json"]).stdout)["environments"] == []


def test_what_is_downloaded_makes_the_environment(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the index is a folder, and what is downloaded alone makes the environment."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheelhouse"))
    wheels = tmp_path / "wheels"
    done = CliRunner().invoke(app, ["env", "download", "demo-tool", "-o", str(wheels)])
    assert done.exit_code == 0, done.exception
    assert [f.name for f in wheels.iterdir()] == ["tinytool-1.0-py3-none-any.whl"]
    assert done.stdout.startswith(f"{wheels} holds 1 files (")
    assert f"EDGESERVE_WHEELHOUSE={wheels} edgeserve env create demo-tool" in done.stdout
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("EDGESERVE_WHEELHOUSE", str(wheels))
    made = CliRunner().invoke(app, ["env", "create", "demo-tool"])
    assert made.exit_code == 0, made.exception


def test_wheels_that_cannot_be_had_are_told_in_pips_words(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = CliRunner().invoke(app, ["env", "download", "demo-tool", "-o", str(tmp_path / "w")])
    assert isinstance(done.exception, ToolEnvironmentError)
    assert "No matching distribution found for tinytool==1.0" in str(done.exception.cause)


def test_an_unknown_name_is_refused(app: typer.Typer) -> None:
    for command in ("create", "download", "remove"):
        result = CliRunner().invoke(app, ["env", command, "demo-tol"])
        assert isinstance(result.exception, UsageError)


def test_either_name_is_taken() -> None:
    shared = env._environment("scikit-learn")
    assert shared.path == env._environment("sklearn-skops-to-onnx").path
