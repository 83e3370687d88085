"""The benchmark of a bundle: probe, open, check, time in turns, report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeserve.bench.coldstart import ColdStart, cold_starts
from edgeserve.bench.environment import Environment, environment, observe_before
from edgeserve.bench.interleave import Timings
from edgeserve.bench.latency import single_stream
from edgeserve.bench.measurement import BenchSettings, Engaged, Latency, Measurement, Requested
from edgeserve.bench.report import SCHEMA, BenchReport
from edgeserve.bench.statistics import (
    Interval,
    drift,
    percentile_interval,
    speedup_interval,
    summarize,
)
from edgeserve.bench.subjects import (
    SOURCE_INDEX,
    InjectedFaults,
    OpenSubject,
    Skipped,
    close_all,
    open_all,
    requests_of,
    select,
)
from edgeserve.bench.throughput import Offline, accepts_batches, offline
from edgeserve.bench.warnings import (
    BenchWarning,
    baseline_warnings,
    environment_warnings,
    measurement_warnings,
)
from edgeserve.bundle import Bundle
from edgeserve.devices import usable_cores
from edgeserve.errors import NotMeasured
from edgeserve.progress import Say, silent


def bench(
    bundle: Bundle, settings: BenchSettings | None = None, say: Say | None = None
) -> BenchReport:
    """Measure every candidate of the chain that this machine opens, and say why the others do not.

    `say(what, share)` is called with what is being done. Raises BundleError (a digest does not match),
    UsageError (nothing matches the settings), NotMeasured (no candidate works here).
    """
    settings, say = settings or BenchSettings(), say or silent
    bundle.verify()
    with tempfile.TemporaryDirectory(prefix="edgeserve-faults-") as state:
        return _bench(bundle, settings, say, InjectedFaults(settings.inject, state))


def _bench(
    bundle: Bundle, settings: BenchSettings, say: Say, faults: InjectedFaults
) -> BenchReport:
    subjects = select(
        bundle,
        device=settings.device,
        variant=settings.variant,
        against=Path(settings.against) if settings.against else None,
        faults=faults,
    )
    requests = requests_of(bundle)
    before = observe_before()
    cold, skipped = cold_starts(
        bundle,
        subjects,
        threads=settings.threads,
        processes=settings.processes,
        progress=lambda share: say("load time and memory, in fresh processes", share),
    )
    say("opening and checking against the golden samples", None)
    # What did not survive a process of its own is not let into this one.
    opened, refused = open_all(
        bundle, [s for s in subjects if s.key in cold], threads=settings.threads
    )
    try:
        timed, failed = single_stream(
            opened,
            requests,
            seconds=settings.duration_s,
            samples=settings.samples,
            progress=lambda share: say(f"latency, {len(opened)} in turns", share),
        )
        rates, lost = offline(
            bundle,
            opened,
            requests,
            {key: float(np.median(t.ms)) for key, t in timed.items()},
            cores=usable_cores(),
            threads=settings.threads,
            seconds=settings.duration_s / 2,
            progress=lambda share: say(f"throughput, {len(timed)} in turns", share),
        )
    finally:
        close_all(opened)
    skipped += refused + failed + lost
    alive = [o for o in opened if o.subject.key in rates]
    require_some(bundle, alive, skipped)
    versions = {o.subject.candidate.runtime: cold[o.subject.key].runtime_version for o in alive}
    around = environment(before, {name: v or "unknown" for name, v in versions.items()})
    baseline = find_baseline(alive)
    measurements = _measurements(bundle, settings, alive, cold, timed, rates, baseline)
    return BenchReport(
        schema=SCHEMA,
        bundle=str(bundle.path),
        name=bundle.name,
        created=bundle.manifest.created,
        settings=settings,
        environment=around,
        golden_samples=len(requests),
        baseline=baseline.subject.label if baseline else None,
        measurements=measurements,
        skipped=tuple(skipped),
        warnings=_warnings(measurements, around, baseline.subject.label if baseline else None),
    )


def require_some(bundle: Bundle, alive: Sequence[OpenSubject], skipped: Sequence[Skipped]) -> None:
    """Raises NotMeasured unless one of the bundle's own candidates is alive."""
    if not any(o.subject.index != SOURCE_INDEX for o in alive):
        raise NotMeasured(
            f"no candidate of '{bundle.name}' can be measured on this machine",
            cause="; ".join(f"{s.label}: {s.reason}" for s in skipped),
            hint=next((s.hint for s in skipped if s.hint), None),
        )


def find_baseline(opened: Sequence[OpenSubject]) -> OpenSubject | None:
    """What speed-ups are over: the source if it was given, else the first candidate that really
    computes in fp32 (onnxruntime's on the CPU before others')."""
    for item in opened:
        if item.subject.index == SOURCE_INDEX:
            return item
    computing = [
        o
        for o in opened
        if o.subject.precision == "fp32" and o.placement.inference_precision == "fp32"
    ]
    usual = [o for o in computing if o.subject.candidate.runtime == "onnxruntime"
             and o.subject.candidate.device == "cpu"]  # fmt: skip
    return next(iter(usual or computing), None)


def recorded_speedup(bundle: Bundle, opened: OpenSubject) -> float | None:
    """What convert measured of this variant on this runtime and device."""
    candidate = opened.subject.candidate
    if opened.subject.index == SOURCE_INDEX:
        return None
    for measured in bundle.manifest.variant(candidate.variant).measured:
        if (measured.runtime, measured.device) == (candidate.runtime, candidate.device):
            return measured.speedup
    return None


def _measurements(
    bundle: Bundle,
    settings: BenchSettings,
    alive: Sequence[OpenSubject],
    cold: Mapping[str, ColdStart],
    timed: Mapping[str, Timings],
    rates: Mapping[str, Offline],
    baseline: OpenSubject | None,
) -> tuple[Measurement, ...]:
    found = []
    for item in alive:
        key = item.subject.key
        speedup, throughput_speedup = None, None
        if baseline is not None:
            speedup = (
                Interval(1.0, 1.0, 1.0)
                if item is baseline
                else speedup_interval(timed[baseline.subject.key], timed[key])
            )
            throughput_speedup = rate_ratio(rates[baseline.subject.key], rates[key])
        found.append(
            Measurement(
                label=item.subject.label,
                requested=_requested(item, settings),
                engaged=_engaged(bundle, item, cold[key]),
                size_bytes=item.subject.size_bytes,
                golden_error=item.golden_error,
                cold_start=cold[key],
                latency=latency_of(timed[key]),
                offline=rates[key],
                speedup=speedup,
                throughput_speedup=throughput_speedup,
                recorded_speedup=recorded_speedup(bundle, item),
            )
        )
    return tuple(found)


def rate_ratio(baseline: Offline, other: Offline) -> float | None:
    """Best against best, as the median over rounds: slices of one round saw the same machine."""
    if baseline.best is None or other.best is None:
        return None
    pairs = zip(other.best.slices, baseline.best.slices, strict=True)
    return float(np.median([a / b for a, b in pairs]))


def latency_of(timings: Timings) -> Latency:
    return Latency(
        summary=summarize(timings.ms),
        p50_interval=percentile_interval(timings, 50),
        warm_up=timings.warm_up,
        settled=timings.settled,
        drift=drift(timings.ms),
    )


def _requested(item: OpenSubject, settings: BenchSettings) -> Requested:
    candidate = item.subject.candidate
    return Requested(
        variant=candidate.variant,
        runtime=candidate.runtime,
        device=candidate.device,
        precision=item.subject.precision,
        threads=settings.threads,
        static_shapes=candidate.static_shapes,
        options=candidate.options,
    )


def _engaged(bundle: Bundle, item: OpenSubject, cold: ColdStart) -> Engaged:
    placement = item.placement
    return Engaged(
        runtime_version=cold.runtime_version,
        shares=placement.shares,
        inference_precision=placement.inference_precision,
        compute_ops=placement.compute_ops,
        int8_compute_ops=placement.int8_compute_ops,
        concurrency=item.session.concurrency,
        max_batch=accepts_batches(bundle, item),
        mac_shares=placement.mac_shares,
        left_on_cpu=placement.left_on_cpu,
        placement=placement.describe(),
    )


def _warnings(
    measurements: Sequence[Measurement], around: Environment, baseline: str | None
) -> tuple[BenchWarning, ...]:
    found = [*environment_warnings(around), *baseline_warnings(baseline, measurements)]
    for measurement in measurements:
        found += measurement_warnings(measurement, around)
    return tuple(found)
