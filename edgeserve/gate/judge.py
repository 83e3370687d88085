"""Verdicts from facts: a pure decision, one rule per budget.

Times and speed-ups fail only when their whole confidence interval is beyond the limit, so that a busy CI
machine does not fail a model that fits. What convert recorded decides about quality; the few golden
samples measured here decide only where nothing was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from edgeserve.bench.statistics import (
    MIN_SAMPLES,
    Interval,
    percentile_interval,
    share_interval,
    speedup_interval,
)
from edgeserve.bundle import Fidelity
from edgeserve.devices.names import device_kind
from edgeserve.gate.config import Config, Limit
from edgeserve.gate.limits import limit_text
from edgeserve.gate.measure import Facts
from edgeserve.gate.report import BudgetCheck, Verdict

_HERE: Final = "measured here"
# Shares and points come from whole numbers of samples: allow for rounding at the limit itself.
_ROUNDING: Final = 1e-9


def judge(config: Config, facts: Facts) -> tuple[BudgetCheck, ...]:
    """The golden samples first, then a required device, then the limits in their order; fidelity may
    take two rows."""
    rows = [_golden(facts)]
    if facts.required is not None:
        rows.append(_device(facts.required, config.device_where, facts))
    for limit in config.limits:
        if facts.wrong is not None and limit.budget.key not in _WITHOUT_SESSION:
            rows.append(_unmeasured(limit, "it computes wrong numbers"))
        else:
            rows += _RULES[limit.budget.key](limit, facts)
    return tuple(rows)


def _golden(facts: Facts) -> BudgetCheck:
    error = facts.golden_error
    return BudgetCheck(
        budget="golden samples",
        limit=facts.golden_tolerance,
        limit_text=f"{facts.golden_tolerance:.3g} RMS",
        measured=error,
        measured_text="wrong" if error is None else f"{error:.3g} RMS",
        verdict="fail" if facts.wrong else "pass",
        source=f"{_HERE}, {facts.golden_samples} samples",
        note=facts.wrong.reason if facts.wrong else None,
        remedy=facts.wrong.hint if facts.wrong else None,
    )


def _device(required: str, where: str | None, facts: Facts) -> BudgetCheck:
    met = facts.instead is None
    kind = device_kind(required)
    return BudgetCheck(
        budget="device",
        limit=1.0,
        limit_text=required,
        measured=float(met),
        measured_text=facts.subject.candidate.device if met else f"{facts.instead}",
        verdict="pass" if met else "fail",
        source="the candidate that would serve here",
        where=where,
        note=None if met else f"it opens here and comes before {facts.subject.label} in the chain",
        remedy=None
        if met
        else f"edgeserve run --require {kind} prefers it; or convert for a target whose chain starts with it",
    )


def _size(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
    yield _exact(limit, facts.subject.size_bytes, f"files of {facts.subject.candidate.variant}")


def _bundle_size(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
    yield _exact(limit, facts.bundle_bytes, "files of the bundle")


def _latency(rank: int) -> Callable[[Limit, Facts], Iterator[BudgetCheck]]:
    def rule(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
        if facts.timings is None:
            reason = facts.failed.reason if facts.failed else "nothing was timed"
            yield _unmeasured(limit, reason)
            return
        calls = len(facts.timings.ms)
        found = percentile_interval(facts.timings, rank)
        if found is None:
            needs = f"{calls} calls in the time given, p{rank} needs {MIN_SAMPLES[rank]}"
            yield _unmeasured(limit, needs, "give it more time: --patience")
        else:
            yield _noisy(limit, found, f"{_HERE}, {calls} calls")

    return rule


def _speedup(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
    if facts.timings is not None and facts.baseline_timings is not None:
        if facts.baseline == facts.subject.label:
            yield _exact(limit, 1.0, "it is the fp32 candidate itself")
        else:
            found = speedup_interval(facts.baseline_timings, facts.timings)
            yield _noisy(limit, found, f"{_HERE} in turns with {facts.baseline}")
    elif facts.recorded is not None:
        yield _exact(limit, facts.recorded.speedup, _recorded(facts))
    else:
        yield _unmeasured(
            limit, "there is no fp32 candidate to compare with", "--against MODEL.onnx, the source"
        )


def _peak_rss(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
    cold = facts.cold_start
    row = _exact(limit, cold.peak_rss_bytes, f"{_HERE}, {cold.processes} fresh processes")
    yield msgspec.structs.replace(
        row, note=f"{limit_text('size', cold.bare_rss_bytes)} of it are Python and edgeserve"
    )


def _accuracy(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
    accuracy = facts.recorded.accuracy if facts.recorded else None
    if accuracy is None:
        yield _unmeasured(
            limit,
            f"convert recorded no accuracy on {facts.subject.candidate.device}",
            "edgeserve convert --eval labels.csv, on a machine with this device",
        )
        return
    is_drop = limit.budget.key == "max_accuracy_drop"
    value = accuracy.drop_points if is_drop else accuracy.top1
    yield _exact(limit, value, f"{_recorded(facts)}, {accuracy.samples} labelled samples")


def _fidelity(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
    recorded = _part(limit, facts.recorded.fidelity if facts.recorded else None)
    live = _part(limit, facts.live)
    if recorded is None and live is None:
        yield _unmeasured(
            limit,
            "the model has neither class scores nor ids",
            "min_cosine or min_sqnr_db judge any output",
        )
    if recorded is not None and facts.recorded is not None:
        samples = facts.recorded.fidelity.samples
        row = _exact(limit, recorded, f"{_recorded(facts)}, {samples} samples")
        yield _naming_worst(row, facts.recorded.fidelity)
    if live is not None and facts.live is not None:
        samples = facts.live.samples
        source = f"{_HERE}, {samples} golden samples"
        if recorded is not None:
            row = _naming_worst(_exact(limit, live, source), facts.live)
            if row.verdict == "fail":
                row = msgspec.structs.replace(
                    row, verdict="warn", note="few samples: what convert recorded decides"
                )
            yield row
        elif limit.budget.key == "min_fidelity":
            yield _noisy(limit, share_interval(round(live * samples), samples), source)
        else:
            yield _naming_worst(_exact(limit, live, source), facts.live)


def _naming_worst(row: BudgetCheck, fidelity: Fidelity) -> BudgetCheck:
    """A row about SQNR with the output, or the part of one, that it is of."""
    worst = fidelity.worst
    if row.budget != "min_sqnr_db" or worst is None or len(fidelity.outputs) + len(worst.parts) < 3:
        return row
    return msgspec.structs.replace(row, note=f"the worst is {worst.worst}")


def _on_device(limit: Limit, facts: Facts) -> Iterator[BudgetCheck]:
    placement = facts.placement
    shares = (placement.mac_shares or placement.shares) if placement else {}
    if placement is None or not shares:
        yield _unmeasured(limit, "the engine does not report what runs where")
        return
    kind = facts.subject.candidate.kind
    share = sum(s for device, s in shares.items() if device_kind(device) == kind)
    what = "multiply-accumulates" if placement.mac_shares else "operations"
    yield msgspec.structs.replace(
        _exact(limit, share, f"{_HERE}, {what} on {kind}"), note=placement.describe()
    )


def _part(limit: Limit, found: Fidelity | None) -> float | None:
    if found is None:
        return None
    parts = {
        "min_fidelity": found.least_agreement,
        "min_sqnr_db": found.sqnr_db,
        "min_cosine": found.cosine,
    }
    return parts[limit.budget.key]


def _recorded(facts: Facts) -> str:
    if facts.recorded is None:
        return "recorded by convert"
    return f"recorded by convert on {facts.recorded.machine}"


def _exact(limit: Limit, value: float, source: str) -> BudgetCheck:
    met = _beyond(limit, value) <= _ROUNDING
    return _row(limit, value, "pass" if met else "fail", source)


def _noisy(limit: Limit, found: Interval, source: str) -> BudgetCheck:
    """Judge by the whole interval: fail when all of it is beyond the limit, warn when some is."""
    best, worst = (found.low, found.high) if limit.budget.is_maximum else (found.high, found.low)
    verdict: Verdict = "pass"
    if _beyond(limit, best) > _ROUNDING:
        verdict = "fail"
    elif _beyond(limit, worst) > _ROUNDING:
        verdict = "warn"
    row = _row(limit, found.value, verdict, source)
    unit = limit.budget.unit
    between = f"95 % between {limit_text(unit, found.low)} and {limit_text(unit, found.high)}"
    return msgspec.structs.replace(
        row, note=f"within noise of the limit: {between}" if verdict == "warn" else between
    )


def _beyond(limit: Limit, value: float) -> float:
    """By how much `value` misses the limit; not positive when it is met."""
    return value - limit.value if limit.budget.is_maximum else limit.value - value


def _row(limit: Limit, value: float, verdict: Verdict, source: str) -> BudgetCheck:
    budget = limit.budget
    return BudgetCheck(
        budget=budget.key,
        limit=limit.value,
        limit_text=limit_text(budget.unit, limit.value),
        measured=value,
        measured_text=limit_text(budget.unit, value),
        verdict=verdict,
        source=source,
        where=limit.where,
        remedy=budget.remedy if verdict == "fail" else None,
    )


def _unmeasured(limit: Limit, reason: str, remedy: str | None = None) -> BudgetCheck:
    return BudgetCheck(
        budget=limit.budget.key,
        limit=limit.value,
        limit_text=limit_text(limit.budget.unit, limit.value),
        measured=None,
        measured_text="",
        verdict="unmeasured",
        source="",
        where=limit.where,
        note=reason,
        remedy=remedy,
    )


_RULES: Final[dict[str, Callable[[Limit, Facts], Iterator[BudgetCheck]]]] = {
    "max_size": _size,
    "max_bundle_size": _bundle_size,
    "max_latency_p50": _latency(50),
    "max_latency_p99": _latency(99),
    "min_speedup": _speedup,
    "max_peak_rss": _peak_rss,
    "max_accuracy_drop": _accuracy,
    "min_accuracy": _accuracy,
    "min_fidelity": _fidelity,
    "min_sqnr_db": _fidelity,
    "min_cosine": _fidelity,
    "min_on_device": _on_device,
}
_WITHOUT_SESSION: Final = ("max_size", "max_bundle_size")
