"""Devices that fail while they are measured: theirs is the failure, the others are measured all the same."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from edgeserve.bench import BenchSettings, bench
from edgeserve.bench.subjects import InjectedFaults, close_all, open_all, requests_of, select
from edgeserve.bench.throughput import offline
from edgeserve.bundle import Bundle
from edgeserve.cli.main import main
from edgeserve.errors import NotMeasured, UsageError
from edgeserve.isolation import IsolatedSession
from tests.bench.conftest import CPU
from tests.bundles import linear_bundle

QUICK = BenchSettings(duration_s=0.2, samples=11, processes=1)
GPU_LABEL = "onnxruntime/gpu/onnx-fp32"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")


@pytest.fixture
def plain(tmp_path: Path) -> Bundle:
    return Bundle.open(linear_bundle(tmp_path))


@pytest.mark.parametrize(
    ("fault", "stage", "words"),
    [
        ("open-failure@load", "open", "cannot open 'gpu': injected: gpu:open-failure@load"),
        ("segv@load", "open", "died of SIGSEGV: injected: gpu:segv@load"),
        ("kill@5", "open", "died of SIGKILL"),
        ("nan@15", "run", None),
        ("segv@15+", "run", "died of SIGSEGV: injected: gpu:segv@15+"),
        ("exception@15", "run", "the device failed: injected: gpu:exception@15"),
        ("hang@15", "run", "did not finish a call within 2 s"),
    ],
)
def test_a_fault_is_that_candidate_s_alone(
    plain: Bundle, fault: str, stage: str, words: str | None
) -> None:
    """The process that takes the load time runs 11 calls, the one that is timed many."""
    report = bench(plain, msgspec.structs.replace(QUICK, inject=("gpu:stand-in", f"gpu:{fault}")))
    measured = {m.label for m in report.measurements}
    assert CPU.label in measured
    if words is None:  # what it computes while it is timed is nobody's to judge
        assert GPU_LABEL in measured
        return
    assert measured == {CPU.label}
    assert [(s.label, s.stage) for s in report.skipped] == [(GPU_LABEL, stage)]
    assert words in report.skipped[0].reason
    assert "started again" not in (report.skipped[0].hint or "")


def test_wrong_numbers_are_not_timed(plain: Bundle) -> None:
    report = bench(plain, msgspec.structs.replace(QUICK, inject=("gpu:stand-in", "gpu:wrong@1+")))
    assert [(s.label, s.stage) for s in report.skipped] == [(GPU_LABEL, "golden")]
    assert "does not reproduce the golden samples" in report.skipped[0].reason


def test_a_device_lost_while_throughput_is_measured_is_not_in_the_report(plain: Bundle) -> None:
    subjects = select(plain, faults=InjectedFaults(("gpu:stand-in",)))
    opened, _ = open_all(plain, subjects)
    gpu = next(o for o in opened if o.subject.label == GPU_LABEL)
    assert isinstance(gpu.session, IsolatedSession)
    os.kill(gpu.session.pid, signal.SIGKILL)
    try:
        rates, lost = offline(
            plain, opened, requests_of(plain), {"0": 0.01, "1": 0.01},
            cores=2, threads=0, seconds=0.1,
        )  # fmt: skip
    finally:
        close_all(opened)
    assert set(rates) == {"1"}
    assert [(s.label, s.stage) for s in lost] == [(GPU_LABEL, "run")]
    assert "died of SIGKILL" in lost[0].reason


def test_only_accelerators_are_measured_in_a_process_of_their_own(plain: Bundle) -> None:
    opened, _ = open_all(plain, select(plain, faults=InjectedFaults(("gpu:stand-in",))))
    close_all(opened)
    kinds = {o.subject.label: isinstance(o.session, IsolatedSession) for o in opened}
    assert kinds == {GPU_LABEL: True, CPU.label: False}


@pytest.mark.slow
def test_the_command_says_what_failed_and_exits_as_documented(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(linear_bundle(tmp_path))
    quick = ["--duration", "0.1", "--samples", "1"]
    faults = ["--inject", "gpu:stand-in", "--inject", "gpu:crash@15+"]
    assert run("bench", path, *quick, *faults) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"not measured: {GPU_LABEL}: the process of {GPU_LABEL} died of SIGSEGV" in out
    assert run("bench", path, *quick, *faults, "--device", "gpu") == 3
    assert "injected: gpu:crash@15+" in capsys.readouterr().err
    assert run("bench", path, "--inject", "gpu:crush@1") == 2
    assert "did you mean 'crash'?" in capsys.readouterr().err


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_when_the_only_candidate_crashes_that_is_the_error(plain: Bundle) -> None:
    inject = ("gpu:stand-in", "gpu:kill@15+")
    with pytest.raises(NotMeasured, match="can be measured") as caught:
        bench(plain, msgspec.structs.replace(QUICK, device="gpu", inject=inject))
    assert "SIGKILL" in (caught.value.cause or "")
    with pytest.raises(UsageError, match="is not a valid fault"):
        bench(plain, msgspec.structs.replace(QUICK, inject=("gpu",)))
