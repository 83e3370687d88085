"""The whole benchmark on a real engine: what is in the report."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest

from edgeserve.bench import BenchReport, BenchSettings, bench
from edgeserve.bench.run import rate_ratio
from edgeserve.bench.throughput import Offline, Rate, Way
from edgeserve.bundle import Bundle
from edgeserve.errors import BundleError, NotMeasured
from tests.bench import acme
from tests.bench.conftest import CPU, GPU
from tests.bundles import linear_bundle, linear_model

QUICK = BenchSettings(duration_s=0.2, samples=11, processes=1)


def test_a_report_holds_every_candidate_measured_or_with_its_reason(bundle: Bundle) -> None:
    steps: list[str] = []
    report = bench(bundle, QUICK, lambda what, share: steps.append(what))
    (found,) = report.measurements
    assert found.label == CPU.label == report.baseline
    assert found.requested.precision == found.engaged.inference_precision == "fp32"
    assert (found.engaged.compute_ops, found.engaged.int8_compute_ops) == (1, 0)
    assert found.engaged.max_batch == 64
    assert found.latency.summary.samples >= 11
    assert found.speedup is not None
    assert found.speedup.value == found.throughput_speedup == 1.0
    assert found.offline.best is not None
    assert [s.label for s in report.skipped] == [GPU.label]
    assert "CUDAExecutionProvider" in report.skipped[0].reason
    assert report.environment.runtimes == {"onnxruntime": found.engaged.runtime_version}
    assert report.golden_samples == 4
    assert [s.split(",")[0] for s in dict.fromkeys(steps)] == [
        "load time and memory", "opening and checking against the golden samples",
        "latency", "throughput",
    ]  # fmt: skip


def test_a_report_survives_json(bundle: Bundle, tmp_path: Path) -> None:
    onnx.save(linear_model(), tmp_path / "source.onnx")
    settings = msgspec.structs.replace(QUICK, against=str(tmp_path / "source.onnx"))
    report = bench(bundle, settings)
    assert report.baseline == "onnxruntime/cpu/source"
    assert [m.label for m in report.measurements] == [CPU.label, "onnxruntime/cpu/source"]
    assert report.measurements[0].speedup is not None
    assert msgspec.json.decode(msgspec.json.encode(report), type=BenchReport) == report


@pytest.mark.usefixtures("acme_runtime")
def test_requested_is_told_apart_from_engaged(tmp_path: Path) -> None:
    """An fp32 variant that an engine computes in bf16 is no fp32 baseline."""
    chain = (acme.candidate(computes_in="bf16"),)
    report = bench(Bundle.open(linear_bundle(tmp_path, chain=chain)), QUICK)
    (found,) = report.measurements
    assert found.requested.precision == "fp32"
    assert found.engaged.inference_precision == "bf16"
    assert found.engaged.shares == {"npu": 0.75, "cpu": 0.25}
    assert report.baseline is None
    assert found.speedup is None
    assert {"no_baseline", "not_on_device"} <= {w.kind for w in report.warnings}


@pytest.mark.usefixtures("acme_runtime")
def test_a_crashing_driver_does_not_end_the_benchmark(tmp_path: Path) -> None:
    chain = (acme.candidate(fault="abort"), CPU)
    report = bench(Bundle.open(linear_bundle(tmp_path, chain=chain)), QUICK)
    assert [m.label for m in report.measurements] == [CPU.label]
    assert "SIGABRT" in report.skipped[0].reason


def test_when_nothing_opens_every_reason_is_in_the_error(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(GPU,)))
    with pytest.raises(NotMeasured) as caught:
        bench(bundle, QUICK)
    assert caught.value.exit_code == 3
    assert f"{GPU.label}: onnxruntime cannot open 'gpu'" in (caught.value.cause or "")


def test_a_tampered_bundle_is_not_measured(bundle: Bundle) -> None:
    (bundle.root / "onnx-fp32" / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError):
        bench(bundle, QUICK)


def test_rates_are_compared_round_by_round() -> None:
    def rate(*slices: float) -> Offline:
        return Offline((Rate(Way(1, 0, 1), sorted(slices)[len(slices) // 2], slices),))

    # The machine was slow in the second round, for both.
    assert rate_ratio(rate(100, 10, 100), rate(200, 20, 200)) == 2.0
    assert rate_ratio(rate(1), Offline(())) is None
