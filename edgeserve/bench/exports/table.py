"""A benchmark's report for people: two tables, what was not measured, warnings with advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeserve.bench.measurement import Measurement
from edgeserve.bench.report import BenchReport
from edgeserve.bench.statistics import Interval
from edgeserve.bench.subjects import Skipped
from edgeserve.devices.names import device_kind
from edgeserve.tables import print_line, print_table, size_text

if TYPE_CHECKING:
    from rich.console import Console


def export(report: BenchReport, console: Console) -> None:
    """The last line is what to do next."""
    around = report.environment
    print_line(
        console,
        f"bundle   {report.bundle} ({report.name}), {report.golden_samples} golden samples as inputs",
    )
    print_line(console, f"machine  {around.machine.describe()}")
    versions = ", ".join(f"{name} {version}" for name, version in around.runtimes.items())
    load = "" if around.load_average is None else f", load {around.load_average:.1f} before"
    print_line(console, f"engines  {versions}; Python {around.python}{load}")
    console.print()
    _latency_table(console, report)
    console.print()
    _throughput_table(console, report)
    if report.skipped or report.warnings:
        console.print()
    for skipped in report.skipped:
        print_skipped(console, skipped)
    for warning in report.warnings:
        where = f"{warning.subject}: " if warning.subject else ""
        print_line(console, f"warning: {where}{warning.message}")
        print_line(console, f"         -> {warning.advice}")
    print_line(
        console,
        f"\nset limits: edgeserve gate {report.bundle} --max-latency-p50 '{_next_limit(report)} ms'",
    )


def print_skipped(console: Console, skipped: Skipped) -> None:
    print_line(console, f"not measured: {skipped.label}: {skipped.reason}")
    if skipped.hint:
        print_line(console, f"              -> {skipped.hint}")


def _latency_table(console: Console, report: BenchReport) -> None:
    numbers = ("size", "p50 ms", "p90 ms", "p99 ms", "spread", "calls")
    rows = []
    for found in report.measurements:
        summary, engaged = found.latency.summary, found.engaged
        cells = (
            found.label,
            size_text(found.size_bytes),
            _ms(summary.p50),
            _ms(summary.p90),
            _ms(summary.p99),
            f"{100 * summary.spread:.0f} %",
            str(summary.samples),
            _speed(found, report),
            engaged.inference_precision,
            f"{engaged.int8_compute_ops} of {engaged.compute_ops}",
        )
        rows.append(cells)
    columns = ("single stream", *numbers, "speed", "runs in", "int8")
    print_table(console, columns, rows, right=(*numbers, "int8"))
    for found in report.measurements:
        if device_kind(found.requested.device) != "cpu" and found.engaged.placement:
            print_line(console, f"{found.label}: {found.engaged.placement}")


def _throughput_table(console: Console, report: BenchReport) -> None:
    numbers = ("samples/s", "load ms", "reload ms", "first ms", "peak RSS")
    rows = []
    for found in report.measurements:
        cold, best = found.cold_start, found.offline.best
        ratio = found.throughput_speedup
        cells = (
            found.label,
            "" if best is None else _rate(best.samples_per_s),
            "" if ratio is None else f"{ratio:.2f}x",
            "" if best is None else best.way.describe(),
            f"{cold.load_ms:.0f}",
            f"{cold.reload_ms:.0f}",
            _ms(cold.first_inference_ms),
            f"{size_text(cold.peak_rss_bytes)} ({size_text(cold.bare_rss_bytes)} Python)",
        )
        rows.append(cells)
    columns = ("offline and start", "samples/s", "speed", "with", *numbers[1:])
    print_table(console, columns, rows, right=numbers)


def _speed(found: Measurement, report: BenchReport) -> str:
    if found.label == report.baseline:
        return "1.00x, the baseline"
    if found.speedup is not None:
        return interval_text(found.speedup)
    if found.recorded_speedup is not None:
        return f"{found.recorded_speedup:.2f}x when converted"
    return ""


def interval_text(speedup: Interval) -> str:
    return f"{speedup.value:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})"


def _next_limit(report: BenchReport) -> str:
    """A limit with some room over the chain's first candidate."""
    return _ms(1.2 * report.measurements[0].latency.summary.p50)


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
