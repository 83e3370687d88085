"""`edgeserve gate`: whole output, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeserve.bundle import Candidate
from edgeserve.cli.main import main
from edgeserve.devices import machine
from edgeserve.gate.limits import BUDGETS
from tests.bundles import linear_bundle

GPU = Candidate("onnx-fp32", "onnxruntime", "gpu", options={"provider": "CUDAExecutionProvider"})

FAILED = """\
judged   onnxruntime/cpu/onnx-fp32, the first candidate of linear.edge that opens here
machine  {machine}

budget           limit     measured  verdict  source
golden samples   0.001 RMS 0 RMS     pass     measured here, 4 samples
max_size         100 B     232 B     fail     files of onnx-fp32
min_cosine       0.99      1         pass     measured here, 4 golden samples

fail: max_size is 232 B, the limit is 100 B
      -> convert with --precision int8, or train a smaller model
      -> or change the limit: edgeserve.toml [gate] max_size
gate: FAILED, 1 of 3 checks missed
"""
NOT_MEASURED = """\
unmeasured: min_accuracy: convert recorded no accuracy on cpu
      -> edgeserve convert --eval labels.csv, on a machine with this device
gate: NOT MEASURED, 1 of 2 checks
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with linear.edge in it."""
    monkeypatch.setenv("EDGESERVE_QUIET", "1")
    monkeypatch.chdir(tmp_path)
    linear_bundle(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(["gate", *arguments])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def squeezed(text: str) -> list[list[str]]:
    """Lines as words: tables are laid out by width, which is not what these tests are about."""
    return [line.split() for line in text.splitlines() if set(line.strip()) != {"─"}]


def test_a_missed_limit_says_where_to_change_it_and_exits_1(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "edgeserve.toml").write_text('[gate]\nmax_size = "100 B"\nmin_cosine = 0.99\n')
    code, out, err = run(capsys, "linear.edge")
    assert (code, err) == (1, "")
    assert squeezed(out) == squeezed(FAILED.format(machine=machine().describe()))


def test_met_limits_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "linear.edge", "--max-size", "1kB", "--max-peak-rss", "9 GB")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "gate: passed, 3 checks"


def test_what_cannot_be_measured_exits_3(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "linear.edge", "--min-accuracy", "90%")
    assert (code, err) == (3, "")
    assert out.endswith(NOT_MEASURED)


def test_no_limits_exit_2_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "linear.edge")
    assert (code, out) == (2, "")
    assert err == (
        "error: no limits are set\n"
        "cause: no edgeserve.toml or pyproject.toml here has a gate table\n"
        'hint: edgeserve.toml: [gate] max_size = "5 MB", max_latency_p50 = "3 ms"; or --max-size 5MB\n'
    )


def test_json_is_printed_whatever_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "linear.edge", "--max-size", "1", "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["schema"] == "edgeserve-gate/1"
    assert report["verdict"] == "fail"
    assert report["rows"][1]["where"] == "--max-size"


@pytest.mark.parametrize("key", BUDGETS)
def test_every_budget_has_a_flag(capsys: pytest.CaptureFixture[str], key: str) -> None:
    code, out, err = run(capsys, "linear.edge", BUDGETS[key].flag, "much")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {BUDGETS[key].flag}: 'much' is not a valid limit for {key}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no.edge", "--max-size", "1"], 2, "error: no.edge does not exist"),
        (["linear.edge", "--config", "no.toml"], 2, "error: no.toml cannot be read"),
        (["linear.edge", "--max-size", "1", "--device", "npu"], 2, "error: no candidate of 'linear'"),
        (["gpu.edge", "--max-size", "1"], 3, "error: no candidate of 'gpu' opens on this machine"),
    ],
)  # fmt: skip
def test_errors(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], code: int, message: str
) -> None:
    linear_bundle(folder, "gpu", chain=(GPU,))
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith(message)
