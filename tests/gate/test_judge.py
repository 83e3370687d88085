"""Verdicts on given facts."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgeserve.bench.coldstart import ColdStart
from edgeserve.bench.interleave import Timings
from edgeserve.bench.subjects import Skipped, Subject
from edgeserve.bundle import Accuracy, Candidate, Fidelity, Measured
from edgeserve.gate.config import Config, Limit
from edgeserve.gate.judge import judge
from edgeserve.gate.limits import BUDGETS
from edgeserve.gate.measure import Facts
from edgeserve.gate.report import BudgetCheck, Verdict, overall
from edgeserve.runtimes import Placement

RECORDED = Measured(
    runtime="onnxruntime",
    runtime_version="1.0",
    device="cpu",
    machine="a CPU",
    fidelity=Fidelity(200, 30.0, 0.995, 0.1, top1_agreement=0.98),
    latency_ms=1.0,
    speedup=2.5,
    inference_precision="int8",
    int8_compute_ops=5,
    compute_ops=5,
    accuracy=Accuracy(200, top1=0.875, reference=0.88, data_sha256=""),
)
FACTS = Facts(
    subject=Subject(0, Candidate("onnx-int8", "onnxruntime", "cpu"), "int8", 1000),
    bundle_bytes=5000,
    golden_samples=8,
    cold_start=ColdStart(3, 30, 1, 1, 70_000_000, 39_000_000, "1.0"),
    golden_error=0.01,
    golden_tolerance=0.05,
    recorded=RECORDED,
    live=Fidelity(8, 28.0, 0.99, 0.1, top1_agreement=0.875),
)
BARE = msgspec.structs.replace(FACTS, recorded=None)


def placed(macs: dict[str, float], operations: dict[str, float]) -> Facts:
    """The candidate on a GPU, of which the engine says this."""
    subject = Subject(0, Candidate("onnx-fp16", "onnxruntime", "gpu.1"), "fp16", 1000)
    placement = Placement(operations, "fp16", 5, 0, mac_shares=macs)
    return msgspec.structs.replace(FACTS, subject=subject, placement=placement)


def timings(median: float, count: int = 1000, spread: float = 0.05) -> Timings:
    """Rounds that differ by `spread`, evenly around the median."""
    moods = np.linspace(1 - spread, 1 + spread, 20)
    rounds = np.arange(count) * 20 // count
    return Timings(median * moods[rounds], rounds, 10, True)


def check(key: str, limit: float, facts: Facts) -> list[BudgetCheck]:
    golden, *rows = judge(Config((Limit(BUDGETS[key], limit, f"here {key}"),)), facts)
    assert golden.budget == "golden samples"
    assert all(r.budget == key and r.where == f"here {key}" for r in rows)
    return rows


def timed(**changes: Any) -> Facts:
    return msgspec.structs.replace(FACTS, **changes)


@pytest.mark.parametrize(
    ("key", "limit", "facts", "verdict"),
    [
        ("max_size", 1000, FACTS, "pass"),
        ("max_size", 999, FACTS, "fail"),
        ("max_bundle_size", 5000, FACTS, "pass"),
        ("max_bundle_size", 4999, FACTS, "fail"),
        ("max_peak_rss", 70e6, FACTS, "pass"),
        ("max_peak_rss", 69e6, FACTS, "fail"),
        # 88.0 - 87.5 is 0.5000000000000004 points in floating point.
        ("max_accuracy_drop", 0.5, FACTS, "pass"),
        ("max_accuracy_drop", 0.4, FACTS, "fail"),
        ("max_accuracy_drop", 0.5, BARE, "unmeasured"),
        ("min_accuracy", 0.875, FACTS, "pass"),
        ("min_accuracy", 0.88, FACTS, "fail"),
        ("min_speedup", 2.5, FACTS, "pass"),
        ("min_speedup", 2.6, FACTS, "fail"),
        ("min_speedup", 2.5, BARE, "unmeasured"),
        ("min_on_device", 0.9, placed({"gpu": 0.9, "cpu": 0.1}, {"gpu": 0.5, "cpu": 0.5}), "pass"),
        ("min_on_device", 0.91, placed({"gpu": 0.9, "cpu": 0.1}, {}), "fail"),
        ("min_on_device", 0.5, placed({}, {"gpu": 0.5, "cpu": 0.5}), "pass"),
        ("min_on_device", 0.5, placed({"cpu": 1.0}, {}), "fail"),
        ("min_on_device", 0.5, placed({}, {}), "unmeasured"),
        ("min_on_device", 0.5, FACTS, "unmeasured"),
        ("max_latency_p50", 2.0, timed(timings=timings(1.0)), "pass"),
        ("max_latency_p50", 1.0, timed(timings=timings(1.0)), "warn"),
        ("max_latency_p50", 0.99, timed(timings=timings(1.0)), "warn"),
        ("max_latency_p50", 0.5, timed(timings=timings(1.0)), "fail"),
        ("max_latency_p50", 1.0, timed(timings=timings(1.0, count=10)), "unmeasured"),
        ("max_latency_p50", 1.0, FACTS, "unmeasured"),
        ("max_latency_p99", 2.0, timed(timings=timings(1.0)), "pass"),
        ("max_latency_p99", 0.5, timed(timings=timings(1.0)), "fail"),
        ("max_latency_p99", 0.5, timed(timings=timings(1.0, count=661)), "unmeasured"),
        (
            "min_speedup",
            1.9,
            timed(timings=timings(1.0), baseline="fp32", baseline_timings=timings(2.0)),
            "pass",
        ),
        (
            "min_speedup",
            2.1,
            timed(timings=timings(1.0), baseline="fp32", baseline_timings=timings(2.0)),
            "fail",
        ),
    ],
)
def test_verdicts(key: str, limit: float, facts: Facts, verdict: Verdict) -> None:
    (row,) = check(key, limit, facts)
    assert row.verdict == verdict
    assert (row.measured is None) == (verdict == "unmeasured")
    assert bool(row.remedy) or verdict != "fail"


def test_what_convert_recorded_decides_and_a_few_golden_samples_warn() -> None:
    recorded, live = check("min_fidelity", 0.95, FACTS)
    assert (recorded.measured, recorded.verdict) == (0.98, "pass")
    assert recorded.source == "recorded by convert on a CPU, 200 samples"
    assert (live.measured, live.verdict) == (0.875, "warn")
    assert live.source == "measured here, 8 golden samples"
    recorded, live = check("min_sqnr_db", 31, FACTS)
    assert (recorded.verdict, live.verdict) == ("fail", "warn")


@pytest.mark.parametrize(
    ("key", "limit", "verdict"),
    [
        # 7 of 8 agree: with 95 % confidence between 53 and 98 % of all.
        ("min_fidelity", 0.5, "pass"),
        ("min_fidelity", 0.95, "warn"),
        ("min_fidelity", 0.99, "fail"),
        ("min_sqnr_db", 28, "pass"),
        ("min_sqnr_db", 29, "fail"),
        ("min_cosine", 0.99, "pass"),
        ("min_cosine", 0.991, "fail"),
    ],
)
def test_where_nothing_was_recorded_the_golden_samples_decide(
    key: str, limit: float, verdict: Verdict
) -> None:
    (row,) = check(key, limit, BARE)
    assert row.verdict == verdict


def test_agreement_of_a_model_without_classes_is_not_measured() -> None:
    plain = Fidelity(8, 28.0, 0.99, 0.1)
    facts = msgspec.structs.replace(BARE, live=plain)
    (row,) = check("min_fidelity", 0.9, facts)
    assert row.verdict == "unmeasured"
    assert row.note == "the model has neither class scores nor ids"


def test_the_fp32_candidate_is_no_faster_than_itself() -> None:
    label = FACTS.subject.label
    facts = timed(timings=timings(1.0), baseline=label, baseline_timings=timings(1.0))
    (row,) = check("min_speedup", 1.5, facts)
    assert (row.measured, row.verdict) == (1.0, "fail")


def test_a_candidate_that_failed_while_timed_says_why() -> None:
    failed = Skipped("label", "npu", "run", "out of tiles")
    (row,) = check("max_latency_p50", 1, timed(failed=failed))
    assert (row.verdict, row.note) == ("unmeasured", "out of tiles")


def test_wrong_numbers_fail_and_nothing_is_measured_of_them() -> None:
    wrong = Skipped("label", "cpu", "golden", "relative RMS error 3", hint="look")
    facts = timed(wrong=wrong, golden_error=None)
    limits = tuple(
        Limit(BUDGETS[k], 1e9, "") for k in ("max_size", "max_latency_p50", "min_cosine")
    )
    rows = judge(Config(limits), facts)
    assert [r.verdict for r in rows] == ["fail", "pass", "unmeasured", "unmeasured"]
    assert rows[0].note == "relative RMS error 3"
    assert overall(rows) == "fail"


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        ([], "pass"),
        (["pass", "pass"], "pass"),
        (["pass", "warn"], "warn"),
        (["warn", "unmeasured"], "unmeasured"),
        (["unmeasured", "fail", "pass"], "fail"),
    ],
)
def test_a_missed_budget_outweighs_one_not_measured(
    verdicts: list[Verdict], wanted: Verdict
) -> None:
    rows = tuple(BudgetCheck("max_size", 1, "1 B", 1, "1 B", v, "") for v in verdicts)
    assert overall(rows) == wanted
