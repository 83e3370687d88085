"""`edgeserve gate`: limits of size, speed, memory and quality, for CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgeserve.cli.bench import open_bundle


def register(app: typer.Typer) -> None:
    app.command(
        "gate",
        short_help="Hold a bundle to limits, for CI.",
        epilog='Example: edgeserve gate model.edge --max-size 5MB --max-latency-p50 "3 ms"',
    )(gate)


def gate(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle that `edgeserve convert` wrote.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="Limits [edgeserve.toml, or pyproject.toml, here]."),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help='Size of the variant: "5 MB", or bytes.')
    ] = None,
    max_bundle_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of the whole bundle.")
    ] = None,
    max_latency_p50: Annotated[
        str | None, typer.Option(metavar="TIME", help='Single stream: "3 ms", "250 us".')
    ] = None,
    max_latency_p99: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Single stream, the slowest call in a hundred."),
    ] = None,
    min_speedup: Annotated[
        str | None, typer.Option(metavar="TIMES", help="Speed-up over fp32: 2.5.")
    ] = None,
    max_peak_rss: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Peak memory of a process that runs it.")
    ] = None,
    max_accuracy_drop: Annotated[
        str | None, typer.Option(metavar="POINTS", help="Accuracy lost against the source.")
    ] = None,
    min_accuracy: Annotated[
        str | None, typer.Option(metavar="SHARE", help='Top-1 accuracy: 0.9, "90 %".')
    ] = None,
    min_fidelity: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Top-1 agreement with the source.")
    ] = None,
    min_sqnr_db: Annotated[
        str | None, typer.Option(metavar="DB", help="Signal-to-noise ratio of the outputs, in dB.")
    ] = None,
    min_cosine: Annotated[
        str | None, typer.Option(metavar="COSINE", help="Cosine of the outputs to the source's.")
    ] = None,
    min_on_device: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Share of the multiply-accumulates that the accelerator runs."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device to judge: cpu, gpu, npu [first that opens].")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="MODEL.onnx", help="The source, for --min-speedup.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one call; 0: the engine decides.")
    ] = 0,
    duration: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Minimum timing in seconds.")
    ] = 5.0,
    patience: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="Maximum timing in seconds when a p99 needs more samples.",
        ),
    ] = 60.0,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="Format of the report: table or json.")
    ] = "table",
    json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Check a bundle against limits. Exit code: 0 all met, 1 one missed, 2 wrong usage, 3 not measured."""
    from edgeserve.cli.output import progress, stdout_console
    from edgeserve.exporting import exporter
    from edgeserve.gate import gate as check
    from edgeserve.gate import load_config

    export = exporter("edgeserve.gate.exports", "json" if json else format)
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
    export(report, stdout_console())
    raise typer.Exit(report.exit_code)
