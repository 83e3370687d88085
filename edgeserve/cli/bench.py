"""`edgeserve bench`: latency, throughput, load time and memory of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_line

if TYPE_CHECKING:
    from rich.console import Console

    from edgeserve.bench import BenchReport
    from edgeserve.bench.measurement import Measurement
    from edgeserve.bench.statistics import Interval
    from edgeserve.bench.subjects import Skipped
    from edgeserve.bundle import Bundle

_MODEL_SUFFIXES = (".onnx", ".tflite", ".xml", ".pt2", ".pb", ".keras", ".h5", ".gguf")


def register(app: typer.Typer) -> None:
    app.command(
        "bench",
        short_help="Measure latency, throughput, load time and memory.",
        epilog="Example: edgeserve bench model.edge --against model.onnx",
    )(bench)


def bench(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `edgeserve convert` wrote.")],
    device: Annotated[
        str | None, typer.Option(help="Only candidates on this device: cpu, gpu, npu.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Only candidates with this variant.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.onnx", help="Measure the source model beside them, in fp32."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one call; 0 leaves it to the engine.")
    ] = 0,
    duration: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Single-stream time per candidate.")
    ] = 5.0,
    samples: Annotated[
        int, typer.Option(min=1, help="At least so many calls per candidate (662 for a p99).")
    ] = 64,
    inject: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="For tests: have a device fail, like gpu:crash@100."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="PATH", help="Write the JSON there too.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure every candidate of the chain that opens here, in turns; say why the others do not."""
    from edgeserve.bench import BenchSettings
    from edgeserve.bench import bench as measure
    from edgeserve.cli.output import progress, to_json, write_output

    bundle = open_bundle(path)
    settings = BenchSettings(
        device=device,
        variant=variant,
        threads=threads,
        duration_s=duration,
        samples=samples,
        against=str(against) if against else None,
        inject=tuple(inject or ()),
    )
    with progress() as say:
        report = measure(bundle, settings, say)
    if json or output == "-":
        print(to_json(report))
    else:
        render(report)
    if output not in (None, "-"):
        write_output(to_json(report), output)


def open_bundle(path: Path) -> Bundle:
    """Raises BundleError; for a model file UsageError, naming the command that makes a bundle of it."""
    from edgeserve.bundle import Bundle
    from edgeserve.errors import UsageError

    if path.is_file() and path.suffix.lower() in _MODEL_SUFFIXES:
        raise UsageError(
            f"{path} is a model, not a bundle",
            cause="only a bundle holds samples to measure with, and the outputs they must give",
            hint=f"edgeserve convert {path} -o {path.with_suffix('.edge').name}",
        )
    return Bundle.open(path)


def render(report: BenchReport) -> None:
    """The report for people; the last line is what to do next."""
    from edgeserve.cli.output import stdout_console

    console = stdout_console()
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
        render_skipped(console, skipped)
    for warning in report.warnings:
        where = f"{warning.subject}: " if warning.subject else ""
        print_line(console, f"warning: {where}{warning.message}")
        print_line(console, f"         -> {warning.advice}")
    print_line(
        console,
        f"\nset limits: edgeserve gate {report.bundle} --max-latency-p50 '{_next_limit(report)} ms'",
    )


def render_skipped(console: Console, skipped: Skipped) -> None:
    print_line(console, f"not measured: {skipped.label}: {skipped.reason}")
    if skipped.hint:
        print_line(console, f"              -> {skipped.hint}")


def _latency_table(console: Console, report: BenchReport) -> None:
    from edgeserve.cli.output import size_text
    from edgeserve.cli.tables import add_row, table_of
    from edgeserve.devices.names import device_kind

    numbers = ("size", "p50 ms", "p90 ms", "p99 ms", "spread", "calls")
    table = table_of(
        "single stream", *numbers, "speed", "runs in", "int8", right=(*numbers, "int8")
    )
    for found in report.measurements:
        summary, engaged = found.latency.summary, found.engaged
        add_row(
            table,
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
    console.print(table)
    for found in report.measurements:
        if device_kind(found.requested.device) != "cpu" and found.engaged.placement:
            print_line(console, f"{found.label}: {found.engaged.placement}")


def _throughput_table(console: Console, report: BenchReport) -> None:
    from edgeserve.cli.output import size_text
    from edgeserve.cli.tables import add_row, table_of

    numbers = ("samples/s", "load ms", "reload ms", "first ms", "peak RSS")
    table = table_of("offline and start", "samples/s", "speed", "with", *numbers[1:], right=numbers)
    for found in report.measurements:
        cold, best = found.cold_start, found.offline.best
        ratio = found.throughput_speedup
        add_row(
            table,
            found.label,
            "" if best is None else _rate(best.samples_per_s),
            "" if ratio is None else f"{ratio:.2f}x",
            "" if best is None else best.way.describe(),
            f"{cold.load_ms:.0f}",
            f"{cold.reload_ms:.0f}",
            _ms(cold.first_inference_ms),
            f"{size_text(cold.peak_rss_bytes)} ({size_text(cold.bare_rss_bytes)} Python)",
        )
    console.print(table)


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
