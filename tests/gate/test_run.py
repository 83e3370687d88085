"""The whole gate on a real engine: which candidate is judged, and what is measured of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edgeserve.bench.subjects import SOURCE_INDEX
from edgeserve.bundle import Bundle, Candidate
from edgeserve.errors import BundleError, DeviceUnavailable, UsageError
from edgeserve.gate import Config, GateReport, gate, load_config
from edgeserve.gate.limits import Value
from edgeserve.gate.measure import measure
from tests.bench import acme
from tests.bundles import LINEAR, linear, linear_bundle, linear_model, write_bundle

CPU = Candidate("onnx-fp32", "onnxruntime", "cpu")
GPU = Candidate("onnx-fp32", "onnxruntime", "gpu", options={"provider": "CUDAExecutionProvider"})


def limits(tmp_path: Path, **flags: Value) -> Config:
    return load_config("linear", folder=tmp_path, flags=flags)


def verdicts(report: GateReport) -> dict[str, str]:
    return {row.budget: row.verdict for row in report.rows}


def test_the_first_candidate_that_opens_is_judged(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(GPU, CPU)))
    config = limits(tmp_path, max_size="1 MB", max_latency_p99="10 s", min_sqnr_db=60)
    report = gate(bundle, config, seconds=0.2)
    assert report.candidate == CPU.label
    assert verdicts(report) == {
        "golden samples": "pass",
        "max_size": "pass",
        "max_latency_p99": "pass",
        "min_sqnr_db": "pass",
    }
    assert [s.label for s in report.skipped] == [GPU.label]
    assert (report.verdict, report.exit_code) == ("pass", 0)
    assert report.environment.runtimes["onnxruntime"]
    assert msgspec.json.decode(msgspec.json.encode(report), type=GateReport) == report


def test_a_missed_budget_exits_1_and_one_not_measured_3(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path))
    missed = gate(bundle, limits(tmp_path, max_size=1, min_accuracy=0.5))
    assert missed.exit_code == 1
    unmeasured = gate(bundle, limits(tmp_path, max_size="1 MB", min_accuracy=0.5))
    assert unmeasured.exit_code == 3
    assert unmeasured.rows[-1].note == "convert recorded no accuracy on cpu"


def test_only_what_is_needed_is_measured(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path))
    facts, _ = measure(
        bundle,
        limits(tmp_path, max_size="1 MB"),
        seconds=1,
        patience_s=1,
        threads=0,
        say=lambda what, share: None,
    )
    assert facts.timings is None
    assert facts.live is None
    assert facts.cold_start.processes == 1


def test_wrong_numbers_fail_the_gate_whatever_the_limits(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    path = write_bundle(tmp_path, "wrong", linear_model(), LINEAR, {"x": x}, {"y": linear(x) + 1})
    report = gate(Bundle.open(path), limits(tmp_path, max_size="1 MB", max_latency_p50="1 s"))
    assert verdicts(report) == {
        "golden samples": "fail",
        "max_size": "pass",
        "max_latency_p50": "unmeasured",
    }
    assert report.exit_code == 1


def test_a_missing_device_exits_3_with_the_engine_s_reason(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(GPU, CPU)))
    with pytest.raises(DeviceUnavailable) as caught:
        gate(bundle, limits(tmp_path, max_size=1, device="gpu"))
    assert caught.value.exit_code == 3
    assert caught.value.message == "no candidate of 'linear' opens on this machine on gpu"
    assert "CUDAExecutionProvider" in (caught.value.cause or "")


def test_a_required_device_is_opened_and_must_be_right(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(GPU, CPU)))
    report = gate(bundle, limits(tmp_path, device="cpu"))
    assert verdicts(report) == {"golden samples": "pass"}
    with pytest.raises(DeviceUnavailable):
        gate(bundle, limits(tmp_path, device="gpu"))
    report = gate(bundle, limits(tmp_path, min_on_device="100 %"))
    assert verdicts(report) == {"golden samples": "pass", "min_on_device": "pass"}


@pytest.mark.slow
def test_a_required_device_that_would_not_serve_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens and is right, but what stands before it in the chain serves."""
    acme.install(tmp_path / "site", monkeypatch)
    npu = acme.candidate()
    first = Bundle.open(linear_bundle(tmp_path, "linear", chain=(npu, CPU)))
    report = gate(first, limits(tmp_path, device="npu"))
    assert verdicts(report) == {"golden samples": "pass", "device": "pass"}
    behind_missing = Bundle.open(linear_bundle(tmp_path, "missing", chain=(GPU, npu, CPU)))
    report = gate(behind_missing, limits(tmp_path, device="npu"))
    assert verdicts(report) == {"golden samples": "pass", "device": "pass"}
    assert [s.label for s in report.skipped] == [GPU.label]

    behind = Bundle.open(linear_bundle(tmp_path, "behind", chain=(GPU, CPU, npu)))
    report = gate(behind, limits(tmp_path, device="npu"))
    assert report.candidate == npu.label
    assert (report.verdict, report.exit_code) == ("fail", 1)
    row = report.rows[1]
    assert (row.budget, row.limit_text, row.measured_text) == ("device", "npu", CPU.label)
    assert row.note == f"it opens here and comes before {npu.label} in the chain"
    assert "run --require npu" in (row.remedy or "")
    assert row.where == "--device"


def test_limits_may_be_held_on_the_cpu_behind_an_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme.install(tmp_path / "site", monkeypatch)
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(acme.candidate(), CPU)))
    report = gate(bundle, limits(tmp_path, device="cpu", max_size="1 MB"))
    assert report.candidate == CPU.label
    assert verdicts(report) == {"golden samples": "pass", "max_size": "pass"}


def test_a_required_device_that_dies_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme.install(tmp_path / "site", monkeypatch)
    dying = acme.candidate(fault="die", after=50)
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(dying, CPU)))
    report = gate(bundle, limits(tmp_path, device="npu", max_latency_p50="1 s"), seconds=0.2)
    assert report.exit_code == 3
    assert "died of SIGKILL" in (report.rows[-1].note or "")


def test_a_device_that_no_candidate_is_for_exits_2(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path))
    with pytest.raises(UsageError, match="no candidate of 'linear' matches"):
        gate(bundle, limits(tmp_path, max_size=1, device="npu"))


def test_a_tampered_bundle_exits_2(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    (path / "onnx-fp32" / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError):
        gate(Bundle.open(path), limits(tmp_path, max_size=1))


def test_a_speed_up_is_measured_against_the_source(tmp_path: Path) -> None:
    onnx.save(linear_model(), tmp_path / "source.onnx")
    bundle = Bundle.open(linear_bundle(tmp_path))
    config = limits(tmp_path, min_speedup=0.01, against=str(tmp_path / "source.onnx"))
    report = gate(bundle, config, seconds=0.2)
    assert SOURCE_INDEX == -1
    assert report.rows[-1].source == "measured here in turns with onnxruntime/cpu/source"
    assert report.exit_code == 0


def test_a_source_that_does_not_exist_exits_2(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path))
    config = limits(tmp_path, min_speedup=1, against=str(tmp_path / "no.onnx"))
    with pytest.raises(UsageError, match="does not exist"):
        gate(bundle, config, seconds=0.2)


def test_another_model_as_the_source_exits_2(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.full(3, 2.0, np.float32), "b")
    )
    onnx.save(model, tmp_path / "other.onnx")
    bundle = Bundle.open(linear_bundle(tmp_path))
    config = limits(tmp_path, min_speedup=1, against=str(tmp_path / "other.onnx"))
    with pytest.raises(UsageError, match="no speed-up over"):
        gate(bundle, config, seconds=0.2)


def test_failing_while_timed_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme.install(tmp_path / "site", monkeypatch)
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(acme.candidate(after=50), CPU)))
    report = gate(bundle, limits(tmp_path, max_latency_p50="1 s"), seconds=0.2)
    assert report.exit_code == 3
    assert report.rows[-1].note == "acme failed on npu: out of tiles"
