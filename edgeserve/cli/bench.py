"""`edgeserve bench`: latency, throughput, load time and memory of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeserve.bundle import Bundle

_EXPORTS = "edgeserve.bench.exports"
_MODEL_SUFFIXES = (".onnx", ".tflite", ".xml", ".pt2", ".pb", ".keras", ".h5", ".gguf")


def register(app: typer.Typer) -> None:
    app.command(
        "bench",
        short_help="Measure latency, throughput, load time and memory.",
        epilog="Example: edgeserve bench model.edge --against model.onnx",
    )(bench)


def bench(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle that `edgeserve convert` wrote.")
    ],
    device: Annotated[
        str | None, typer.Option(help="Only candidates on this device: cpu, gpu, npu.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Only candidates with this variant.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.onnx", help="Also measure the source model, in fp32."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one call; 0: the engine decides.")
    ] = 0,
    duration: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="SECONDS", help="Single-stream timing per candidate, in seconds."
        ),
    ] = 5.0,
    samples: Annotated[
        int, typer.Option(min=1, help="Minimum calls per candidate (662 for a p99).")
    ] = 64,
    inject: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="For tests: make a device fail, like gpu:crash@100."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="Also write the report to this file, as JSON unless --format is given.",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="Format of the report: table or json.")
    ] = "table",
    json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Measure every candidate that opens on this machine, in turns, and say why the others do not open."""
    from edgeserve.bench import BenchSettings
    from edgeserve.bench import bench as measure
    from edgeserve.cli.output import progress, stdout_console, write_output
    from edgeserve.exporting import as_text, exporter

    shown = exporter(_EXPORTS, "json" if json else format)
    written = exporter(_EXPORTS, "json" if format == "table" else format)
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
    if output != "-":
        shown(report, stdout_console())
    if output is not None:
        write_output(as_text(written, report), output)


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
