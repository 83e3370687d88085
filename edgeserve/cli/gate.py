"""`edgeserve gate`: limits of size, speed, memory and quality, for CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.bench import open_bundle, render_skipped
from edgeserve.cli.output import print_line

if TYPE_CHECKING:
    from rich.console import Console

    from edgeserve.gate import GateReport, Row


def register(app: typer.Typer) -> None:
    app.command(
        "gate",
        short_help="Hold a bundle to limits, for CI.",
        epilog='Example: edgeserve gate model.edge --max-size 5MB --max-latency-p50 "3 ms"',
    )(gate)


def gate(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `edgeserve convert` wrote.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="Limits [edgeserve.toml, or pyproject.toml, here]."),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help='Files of the variant: "5 MB", bytes.')
    ] = None,
    max_bundle_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The whole bundle.")
    ] = None,
    max_latency_p50: Annotated[
        str | None, typer.Option(metavar="TIME", help='Single stream: "3 ms", "250 us".')
    ] = None,
    max_latency_p99: Annotated[
        str | None, typer.Option(metavar="TIME", help="The same, one call in a hundred.")
    ] = None,
    min_speedup: Annotated[
        str | None, typer.Option(metavar="TIMES", help="Over fp32: 2.5.")
    ] = None,
    max_peak_rss: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of a process that runs it.")
    ] = None,
    max_accuracy_drop: Annotated[
        str | None, typer.Option(metavar="POINTS", help="Lost against the source.")
    ] = None,
    min_accuracy: Annotated[
        str | None, typer.Option(metavar="SHARE", help='Top-1: 0.9, "90 %".')
    ] = None,
    min_fidelity: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Top-1 agreement with the source.")
    ] = None,
    min_sqnr_db: Annotated[
        str | None, typer.Option(metavar="DB", help="Signal to noise of the outputs.")
    ] = None,
    min_cosine: Annotated[
        str | None, typer.Option(metavar="COSINE", help="Of the outputs to the source's.")
    ] = None,
    min_on_device: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Of the MACs, that the accelerator really runs."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the limits hold: cpu, gpu, npu [first that opens].")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="MODEL.onnx", help="The source, for --min-speedup.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one call; 0 leaves it to the engine.")
    ] = 0,
    duration: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Timing, at least.")
    ] = 5.0,
    patience: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Timing, at most, until p99 is sure.")
    ] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check a bundle against limits. Exit code: 0 all met, 1 one missed, 2 wrong usage, 3 not measured."""
    from edgeserve.cli.output import progress, to_json
    from edgeserve.gate import gate as check
    from edgeserve.gate import load_config

    bundle = open_bundle(path)
    flags = {
        "max_size": max_size,
        "max_bundle_size": max_bundle_size,
        "max_latency_p50": max_latency_p50,
        "max_latency_p99": max_latency_p99,
        "min_speedup": min_speedup,
        "max_peak_rss": max_peak_rss,
        "max_accuracy_drop": max_accuracy_drop,
        "min_accuracy": min_accuracy,
        "min_fidelity": min_fidelity,
        "min_sqnr_db": min_sqnr_db,
        "min_cosine": min_cosine,
        "min_on_device": min_on_device,
        "device": device,
        "against": str(against) if against else None,
    }
    limits = load_config(bundle.name, folder=Path(), file=config, flags=flags, environ=os.environ)
    with progress() as say:
        report = check(
            bundle, limits, seconds=duration, patience_s=patience, threads=threads, say=say
        )
    if json:
        print(to_json(report))
    else:
        render(report)
    raise typer.Exit(report.exit_code)


def render(report: GateReport) -> None:
    """The report for people; the last line is the verdict."""
    from edgeserve.cli.output import stdout_console
    from edgeserve.cli.tables import add_row, table_of

    console = stdout_console()
    on = next((f" on {r.limit_text}" for r in report.rows if r.budget == "device"), "")
    judged = f"{report.candidate}, the first candidate of {report.bundle}{on} that opens here"
    print_line(console, f"judged   {judged}")
    print_line(console, f"machine  {report.environment.machine.describe()}\n")
    table = table_of(
        "budget", "limit", "measured", "verdict", "source", right=("limit", "measured")
    )
    for row in report.rows:
        add_row(table, row.budget, row.limit_text, row.measured_text, row.verdict, row.source)
    console.print(table)
    console.print()
    for row in report.rows:
        _render_row(console, row)
    for skipped in report.skipped:
        render_skipped(console, skipped)
    for warning in report.warnings:
        print_line(console, f"warning: {warning.message}")
        print_line(console, f"         -> {warning.advice}")
    print_line(console, _conclusion(report))


def _render_row(console: Console, row: Row) -> None:
    """What to know, and what to do, about a row that did not simply pass."""
    if row.verdict == "pass":
        return
    if row.verdict == "fail" and row.measured is not None:
        print_line(console, f"fail: {row.budget} is {row.measured_text}, the limit is {row.limit_text}"
             + (f" ({row.note})" if row.note else ""))  # fmt: skip
    else:
        print_line(console, f"{row.verdict}: {row.budget}: {row.note}")
    if row.remedy:
        print_line(console, f"      -> {row.remedy}")
    if row.where and row.verdict in ("fail", "warn"):
        print_line(console, f"      -> or change the limit: {row.where}")


def _conclusion(report: GateReport) -> str:
    count = {v: sum(r.verdict == v for r in report.rows) for v in ("fail", "unmeasured", "warn")}
    if report.verdict == "fail":
        return f"gate: FAILED, {count['fail']} of {len(report.rows)} checks missed"
    if report.verdict == "unmeasured":
        return f"gate: NOT MEASURED, {count['unmeasured']} of {len(report.rows)} checks"
    noise = f", {count['warn']} with a warning" if count["warn"] else ""
    return f"gate: passed, {len(report.rows)} checks{noise}"
