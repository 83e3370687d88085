"""`edgeserve doctor`: what it prints and how it ends, on this machine and with engines that break."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeserve.cli.main import main
from edgeserve.runtimes import runtime_names
from tests.distributions import write_distribution

CRASHES = """
import os, signal
class Acme:
    name, formats, requires = "acme", ("onnx",), ()
    def probe(self):
        os.kill(os.getpid(), signal.SIGABRT)
    def load(self, model, device, options):
        os.kill(os.getpid(), signal.SIGABRT)
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out, err


@pytest.mark.slow
def test_json_says_what_opens_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--json", "--require", "cpu")
    found = json.loads(out)
    assert (code, found["ok"]) == (0, True)
    assert {p["name"] for p in found["packages"]} >= {"numpy", "onnxruntime"}
    opened = {p["runtime"] for p in found["probes"] if p["device"] == "cpu" and p["ok"]}
    assert {"onnxruntime"} <= opened <= set(runtime_names())
    assert found["machine"]["cores"] >= 1
    assert found["memory"]["available"] > 0
    for probe in found["probes"]:
        assert probe["ok"] or probe["error"], probe


def test_the_table_ends_with_what_to_do_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("edgeserve ")
    assert lines[-1] == "fine; next: edgeserve convert MODEL -o NAME.edge"
    (row,) = [line for line in lines if line.startswith("onnxruntime") and " cpu " in line]
    assert " yes " in row
    assert "on cpu, fp32" in row
    assert "/site-packages/" not in out


def test_an_engine_that_crashes_fails_it_and_stops_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = write_distribution(
        tmp_path, "acme_crash", "edgeserve.runtimes", "acme = acme_crash:Acme", CRASHES
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    runtime_names.cache_clear()
    try:
        code, out, _ = run(capsys, "--json", "--require", "npu")
    finally:
        runtime_names.cache_clear()
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    errors = {f["about"]: f["text"] for f in found["findings"] if f["level"] == "error"}
    assert errors["acme"] == (
        "acme does not run on the CPU: its process dies of SIGABRT while the device is opened"
    )
    if not any(p["device"] == "npu" and p["ok"] for p in found["probes"]):
        assert errors["npu"].startswith("no runtime opens 'npu', which is required")
    assert any(p["runtime"] == "onnxruntime" and p["ok"] for p in found["probes"])


@pytest.mark.parametrize("arguments", [("--require", "tpu"), ("--timeout", "0")])
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
