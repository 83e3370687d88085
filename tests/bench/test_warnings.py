"""Each warning: the measurement that calls for it, and one that does not."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from edgeserve.bench.coldstart import ColdStart
from edgeserve.bench.environment import Environment
from edgeserve.bench.measurement import Engaged, Latency, Measurement, Requested
from edgeserve.bench.statistics import Summary
from edgeserve.bench.throughput import NoRate, Offline, Way
from edgeserve.bench.warnings import (
    Kind,
    baseline_warnings,
    environment_warnings,
    measurement_warnings,
)
from edgeserve.devices import Machine

QUIET = Environment(
    time="2026-01-01T00:00:00+00:00",
    machine=Machine("Linux", "x86_64", "CPU", (), 2, 1 << 30),
    edgeserve="1",
    python="3.11",
    numpy="2",
    runtimes={},
    load_average=0.1,
    all_cores=2,
    governor=None,
    on_battery=False,
    stolen=0.0,
    timer_overhead_ms=0.0001,
)
GOOD = Measurement(
    label="onnxruntime/cpu/onnx-int8",
    requested=Requested("onnx-int8", "onnxruntime", "cpu", "int8", 0, False, {}),
    engaged=Engaged("1.0", {"cpu": 1.0}, "int8", 5, 5, 2, 64),
    size_bytes=1000,
    golden_error=0.01,
    cold_start=ColdStart(3, 30, 1, 1, 70_000_000, 39_000_000, "1.0"),
    latency=Latency(
        Summary(
            samples=1000, mean=1.0, minimum=0.9, p50=1.0, p90=1.1, p99=1.3, spread=0.05, outliers=3
        ),
        None,
        warm_up=10,
        settled=True,
        drift=0.01,
    ),
    offline=Offline(()),
)


def summary(**changes: Any) -> Measurement:
    latency = GOOD.latency
    changed = msgspec.structs.replace(latency.summary, **changes)
    return msgspec.structs.replace(GOOD, latency=msgspec.structs.replace(latency, summary=changed))


def latency(**changes: Any) -> Measurement:
    return msgspec.structs.replace(GOOD, latency=msgspec.structs.replace(GOOD.latency, **changes))


def engaged(**changes: Any) -> Measurement:
    return msgspec.structs.replace(GOOD, engaged=msgspec.structs.replace(GOOD.engaged, **changes))


def offline(*failed: NoRate) -> Measurement:
    return msgspec.structs.replace(GOOD, offline=Offline((), failed))


OF_MEASUREMENTS = {
    "too_few_samples": (
        summary(samples=40, p90=None, p99=None),
        "p90 and p99 not reported from 40 samples",
    ),
    "noisy": (summary(spread=0.3), "times vary: the middle half spans 30 % of the median"),
    "long_tail": (
        summary(p99=2.5),
        "one call in a hundred takes 2.5 times the median or longer",
    ),
    "not_settled": (latency(settled=False), "still getting faster after 10 warm-up calls"),
    "drift": (latency(drift=0.2), "became 20 % slower while it was measured"),
    "timer": (summary(p50=0.002), "reading the clock costs 5 % of a call"),
    "batches_not_used": (
        engaged(max_batch=0),
        "runs one sample per call: the model has no batch dimension, or a fixed one",
    ),
    "not_on_device": (
        msgspec.structs.replace(
            engaged(shares={"gpu": 0.75, "cpu": 0.25}),
            requested=msgspec.structs.replace(GOOD.requested, device="gpu"),
        ),
        "75 % of its operations run on gpu, 25 % on cpu",
    ),
    "int8_not_engaged": (
        engaged(int8_compute_ops=0),
        "none of its 5 convolutions and matrix products run in int8",
    ),
    "way_not_measured": (
        offline(NoRate(Way(2, 1, 16), "slow", "it would take about 40 s")),
        "throughput with 2 callers x 1 thread, batch 16 was not measured: it would take about 40 s",
    ),
}
OF_ENVIRONMENTS = {
    "high_load": (
        {"load_average": 1.7},
        "the machine was busy before the benchmark began: load 1.7 on 2 cores",
    ),
    "stolen_time": ({"stolen": 0.2}, "the hypervisor gave 20 % of the time to other machines"),
    "on_battery": ({"on_battery": True}, "the machine runs on its battery and may slow down"),
}


@pytest.mark.parametrize("kind", OF_MEASUREMENTS)
def test_a_measurement_calls_for_one_warning(kind: str) -> None:
    found, message = OF_MEASUREMENTS[kind]
    warnings = [w for w in measurement_warnings(found, QUIET) if w.kind == kind]
    assert [(w.message, w.subject) for w in warnings] == [(message, GOOD.label)]
    assert warnings[0].advice


@pytest.mark.parametrize("kind", OF_ENVIRONMENTS)
def test_circumstances_call_for_one_warning(kind: str) -> None:
    changes, message = OF_ENVIRONMENTS[kind]
    (warning,) = environment_warnings(msgspec.structs.replace(QUIET, **changes))
    assert (warning.kind, warning.message, warning.subject) == (kind, message, None)


def test_nothing_is_said_about_a_good_measurement() -> None:
    assert [*measurement_warnings(GOOD, QUIET), *environment_warnings(QUIET)] == []
    assert list(baseline_warnings("some", [GOOD])) == []


def test_nothing_is_said_about_what_the_system_does_not_tell() -> None:
    blind = msgspec.structs.replace(QUIET, load_average=None, on_battery=None, stolen=None)
    assert list(environment_warnings(blind)) == []


def test_without_a_baseline_the_flag_for_one_is_named() -> None:
    (warning,) = baseline_warnings(None, [GOOD])
    assert warning.kind == "no_baseline"
    assert "--against" in warning.advice


def test_every_kind_is_tested_here() -> None:
    assert {*OF_MEASUREMENTS, *OF_ENVIRONMENTS, "no_baseline"} == set(get_args(Kind))
