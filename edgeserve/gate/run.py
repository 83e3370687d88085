"""The gate of a bundle: measure what the limits need, judge, report."""

from __future__ import annotations

from edgeserve.bench.environment import environment, observe_before
from edgeserve.bench.warnings import environment_warnings
from edgeserve.bundle import Bundle
from edgeserve.gate.config import Config
from edgeserve.gate.judge import judge
from edgeserve.gate.measure import LATENCY, measure
from edgeserve.gate.report import SCHEMA, GateReport, overall
from edgeserve.progress import Say, silent


def gate(
    bundle: Bundle,
    config: Config,
    *,
    seconds: float = 5.0,
    patience_s: float = 60.0,
    threads: int = 0,
    say: Say | None = None,
) -> GateReport:
    """Hold the first candidate that opens here to the limits.

    Raises BundleError, UsageError (no candidate on the configured device), DeviceUnavailable (none
    opens). A missed limit does not raise: it is in the report.
    """
    before = observe_before()
    facts, skipped = measure(
        bundle,
        config,
        seconds=seconds,
        patience_s=patience_s,
        threads=threads,
        say=say or silent,
    )
    rows = judge(config, facts)
    runtime = facts.subject.candidate.runtime
    around = environment(before, {runtime: facts.cold_start.runtime_version or "unknown"})
    timed = config.has(*LATENCY, "min_speedup")
    return GateReport(
        schema=SCHEMA,
        bundle=str(bundle.path),
        name=bundle.name,
        config=str(config.file) if config.file else None,
        candidate=facts.subject.label,
        verdict=overall(rows),
        rows=rows,
        skipped=tuple(skipped),
        warnings=tuple(environment_warnings(around)) if timed else (),
        environment=around,
    )
