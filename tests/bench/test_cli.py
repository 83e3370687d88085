"""`edgeserve bench`: tables, JSON, files and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeserve.bundle import Bundle
from edgeserve.cli.main import main
from tests.bench.conftest import CPU, GPU
from tests.bundles import linear_bundle


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESERVE_QUIET", "1")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_tables_name_what_was_measured_and_what_was_not(
    capsys: pytest.CaptureFixture[str], bundle: Bundle
) -> None:
    code, out, err = run(capsys, "bench", str(bundle.root), "--duration", "0.2", "--samples", "11")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"bundle   {bundle.root} (linear), 4 golden samples as inputs"
    assert lines[1].startswith("machine  ")
    assert lines[2].startswith("engines  onnxruntime ")
    titles = [line.split("  ")[0] for line in lines]
    assert "single stream" in titles
    assert "offline and start" in titles
    (latency, throughput) = [line for line in lines if line.startswith(CPU.label)]
    assert "1.00x, the baseline" in latency
    assert latency.endswith("0 of 1")
    assert "batch" in throughput
    (refused,) = [line for line in lines if line.startswith("not measured: ")]
    assert refused.startswith(f"not measured: {GPU.label}: onnxruntime cannot open 'gpu'")
    assert lines[-1].startswith(f"set limits: edgeserve gate {bundle.root} --max-latency-p50 ")


def test_json_on_stdout_and_in_a_file(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", str(bundle.root), "--device", "cpu", "--duration", "0.2", "--json"]
    code, out, err = run(capsys, *arguments, "-o", str(file), "--threads", "1")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads(file.read_text())
    assert report["schema"] == "edgeserve-bench/1"
    assert report["measurements"][0]["requested"]["threads"] == 1
    assert report["skipped"] == []


def test_output_to_stdout_is_json(capsys: pytest.CaptureFixture[str], bundle: Bundle) -> None:
    code, out, _ = run(capsys, "bench", str(bundle.root), "--duration", "0.1", "-o", "-")
    assert code == 0
    assert json.loads(out)["name"] == "linear"


def test_a_model_file_is_refused_with_the_command_that_converts_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    code, out, err = run(capsys, "bench", str(model))
    assert (code, out) == (2, "")
    assert err == (
        f"error: {model} is a model, not a bundle\n"
        "cause: only a bundle holds samples to measure with, and the outputs they must give\n"
        f"hint: edgeserve convert {model} -o model.edge\n"
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--device", "npu"], 2, "error: no candidate of 'linear' matches\n"),
        (["--variant", "fp8"], 2, "error: no candidate of 'linear' matches\n"),
        (["--against", "no.onnx"], 2, "error: no.onnx does not exist\n"),
        (["--device", "gpu"], 3, "error: no candidate of 'linear' can be measured on this machine"),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, flags: list[str], code: int, message: str
) -> None:
    got, out, err = run(capsys, "bench", str(bundle.root), *flags)
    assert (got, out) == (code, "")
    assert err.startswith(message)


def test_a_bundle_that_does_not_exist_exits_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, "bench", str(tmp_path / "no.edge"))
    assert code == 2
    assert "no.edge does not exist" in err


def test_a_tampered_bundle_exits_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    (path / "golden-inputs.npz").write_bytes(b"other")
    code, _, err = run(capsys, "bench", str(path))
    assert code == 2
    assert "is not the file the bundle was written with" in err
