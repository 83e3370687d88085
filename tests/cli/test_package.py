"""`edgeserve package` as a command: its table, its JSON, its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgeserve.cli import package
from edgeserve.errors import UsageError
from tests.packaging.bundles import two_runtimes
from tests.packaging.test_folder import built_once, house

__all__ = ["built_once", "house"]  # fixtures


@pytest.fixture
def app() -> typer.Typer:
    application = typer.Typer()
    application.callback()(lambda: None)
    package.register(application)
    return application


def test_sizes_by_part(app: typer.Typer, tmp_path: Path, house: Path) -> None:
    arguments = ["package", str(two_runtimes(tmp_path)), "--wheelhouse", str(house), "-o"]
    table = CliRunner().invoke(app, [*arguments, str(tmp_path / "one")])
    assert table.exit_code == 0
    assert "chain: litert/cpu/tflite-int8 -> onnxruntime/cpu/onnx-fp32" in table.stdout
    for part in ("linear.edge", "edgeserve", "onnxruntime", "ai-edge-litert", "all"):
        assert part in table.stdout
    assert table.stdout.splitlines()[-1].endswith(f"{tmp_path / 'one'}/install.sh")

    printed = CliRunner().invoke(app, [*arguments, str(tmp_path / "two"), "--json"])
    record = json.loads(printed.stdout)
    assert [c["runtime"] for c in record["chain"]] == ["litert", "onnxruntime"]
    in_folder = json.loads((tmp_path / "two" / "package.json").read_bytes())
    assert {**record, "path": "."} == in_folder


def test_an_unknown_variant_is_refused(app: typer.Typer, tmp_path: Path) -> None:
    bundle = str(two_runtimes(tmp_path))
    result = CliRunner().invoke(app, ["package", bundle, "--variant", "onnx-fp16"])
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint == "did you mean 'onnx-fp32'?"
