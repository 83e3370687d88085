"""`edgeserve inspect`: what a model file or a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.tables import print_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console

    from edgeserve.bundle import Manifest, Measured, Recipe, Source, Task, Variant
    from edgeserve.inspecting import BundleReport, ModelReport
    from edgeserve.inspecting.placing import PlacedHere
    from edgeserve.tensors import TensorSpec

_SHOWN_DIGITS = 12
_SHOWN_LABELS = 3


def register(app: typer.Typer) -> None:
    app.command(
        "inspect",
        short_help="Show what a model file or a bundle holds.",
        epilog="Example: edgeserve inspect model.edge",
    )(inspect)


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, or a .onnx, .tflite or OpenVINO .xml.")],
    placement: Annotated[
        bool,
        typer.Option("--placement", help="Open a bundle's candidates and show what runs where."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show inputs, outputs, operators, sizes and variants, and check the digests of a bundle's files."""
    from edgeserve.errors import UsageError
    from edgeserve.exporting import to_json
    from edgeserve.inspecting import BundleReport, inspect_path, is_bundle, place_bundle

    if placement and not is_bundle(path):
        raise UsageError(
            f"{path} is not a bundle",
            cause="only a bundle lists the devices to run on",
            hint="--placement needs a bundle, which edgeserve convert writes",
        )
    report = place_bundle(path) if placement else inspect_path(path)
    if json:
        print(to_json(report))
    elif isinstance(report, BundleReport):
        _render_bundle(report)
    else:
        _render_model(report)


def _render_model(report: ModelReport) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.formats.layers import layers_text
    from edgeserve.formats.report import passed_text, state_text
    from edgeserve.tables import size_text

    console = stdout_console()
    facts: list[tuple[str, str | None]] = [
        ("model", report.path),
        ("format", f"{report.format} ({report.version})"),
        ("producer", report.producer),
        ("parameters", f"{report.parameters:,}"),
        ("size", size_text(report.size_bytes)),
        ("state", state_text(report.state) or passed_text(report.passed)),
        ("weights", layers_text(report.layers)),
    ]
    facts += [
        ("file", f"{f.name}, {size_text(f.size_bytes)}, sha256 {f.sha256}") for f in report.files
    ]
    _facts(console, facts)
    _tensors(console, report.inputs, report.outputs)
    _table(
        console,
        ("operator", "count"),
        [(name, str(count)) for name, count in report.operators.items()],
        right=("count",),
    )
    _table(
        console,
        ("part", "tensors", "parameters", "size", "share"),
        [
            (
                f"weights {w.dtype}",
                str(w.tensors),
                f"{w.elements:,}",
                size_text(w.size_bytes),
                _share(w.size_bytes, report.size_bytes),
            )
            for w in report.weights
        ]
        + [
            (
                "graph",
                "",
                "",
                size_text(report.graph_bytes),
                _share(report.graph_bytes, report.size_bytes),
            )
        ],
        right=("tensors", "parameters", "size", "share"),
    )
    _table(
        console,
        ("largest weights", "type", "size", "share"),
        [
            (
                w.name,
                f"{w.dtype}[{','.join(map(str, w.shape))}]",
                size_text(w.size_bytes),
                _share(w.size_bytes, report.size_bytes),
            )
            for w in report.largest
        ],
        right=("size", "share"),
    )
    if report.format == "onnx":
        print_line(console, f"\nconvert it: edgeserve convert {report.path} -o NAME.edge")


def _render_bundle(report: BundleReport) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.formats.report import state_text
    from edgeserve.tables import size_text

    console, manifest = stdout_console(), report.manifest
    facts: list[tuple[str, str | None]] = [
        ("bundle", f"{manifest.name} ({report.path})"),
        ("written", f"{manifest.created}, schema {manifest.schema_version}"),
        ("target", manifest.target),
        ("source", _source(manifest.source)),
        ("task", manifest.task.kind),
        ("preprocess", _preprocess(manifest.task)),
        ("postprocess", _postprocess(manifest.task)),
        ("labels", _labels(manifest.task, report.labels)),
        ("batch", _batch(manifest)),
        ("state", state_text(manifest.state)),
        ("golden", f"{manifest.golden.samples} samples"),
        ("digests", f"all {report.verified_files} files match their digests"),
        ("made with", ", ".join(f"{k} {v}" for k, v in sorted(manifest.tools.items()))),
    ]
    facts += [("unlisted", f"{name} is not in the manifest") for name in report.unlisted]
    _facts(console, facts)
    _tensors(console, manifest.interface.inputs, manifest.interface.outputs)
    _table(
        console,
        ("variant", "format", "precision", "size", "sha256", "made by"),
        [
            (v.id, v.format, v.precision, size_text(v.size_bytes), _digest(v), _recipe(v.recipe))
            for v in manifest.variants
        ],
        right=("size",),
    )
    _table(
        console,
        ("measured", "on", "latency ms", "speed-up", "fidelity", "accuracy", "int8 ops"),
        [(v.id, *_measured(m)) for v in manifest.variants for m in v.measured],
        right=("latency ms", "speed-up", "int8 ops"),
    )
    _table(
        console,
        ("batches", "on", "requests share", "known by"),
        list(_batches(manifest)),
    )
    _table(
        console,
        ("output", "judged as", "because"),
        [(name, kind.kind, kind.because) for name, kind in manifest.outputs.items()],
    )
    _table(
        console,
        ("measured", "on", "output", "kind", "SQNR dB", "worst part", "agrees", "cosine"),
        [
            (v.id, f"{m.runtime}/{m.device}", *row)
            for v in manifest.variants
            for m in v.measured
            for row in _by_output(m)
        ],
        right=("SQNR dB", "agrees", "cosine"),
    )
    _table(
        console,
        ("placement when measured", "on", "what runs where"),
        [(v.id, _measured_on(m), _placed(m)) for v in manifest.variants for m in v.measured],
    )
    _table(
        console,
        ("placement here", "golden error", "what runs where"),
        [(p.candidate, *_placed_here(p)) for p in report.placements],
        right=("golden error",),
    )
    _table(
        console,
        ("chain", "runtime", "device", "variant"),
        [(str(i), c.runtime, c.device, c.variant) for i, c in enumerate(manifest.chain, start=1)],
    )
    _table(
        console,
        ("not kept", "on", "size", "reason"),
        [
            (
                r.id,
                f"{r.runtime}/{r.device}",
                "" if r.size_bytes is None else size_text(r.size_bytes),
                r.reason,
            )
            for r in manifest.rejected
        ],
        right=("size",),
    )
    _table(
        console,
        ("part", "size", "share"),
        [
            (p.name, size_text(p.size_bytes), _share(p.size_bytes, report.size_bytes))
            for p in report.parts
        ]
        + [("all", size_text(report.size_bytes), "")],
        right=("size", "share"),
    )
    print_line(console, f"\nmeasure it here: edgeserve bench {report.path}")


def _batch(manifest: Manifest) -> str:
    """What the source's graph says."""
    most, known = manifest.interface.max_batch, manifest.batching
    text = f"requests may share one, up to {most} rows" if most else "one request each"
    return f"{text}: {known.reason}" if known is not None else text


def _batches(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    """What each variant does, by its graph or on an engine; nothing where requests never share a batch, or
    nothing was recorded."""
    if manifest.batching is None or manifest.interface.max_batch <= 1:
        return
    for variant in manifest.variants:
        if not variant.measured:
            yield variant.id, "", "", "not tried yet: run tries it"
        for measured in variant.measured:
            found = measured.batching
            on = _measured_on(measured)
            if found is None:
                yield variant.id, on, "", "not recorded: run tries it"
            else:
                shared = f"up to {found.max_batch} rows" if found.max_batch > 1 else "none"
                yield variant.id, on, shared, found.reason


def _source(source: Source) -> str:
    from edgeserve.tables import size_text

    opset = f", opset {source.opset}" if source.opset else ""
    digest = f"sha256 {source.sha256[:_SHOWN_DIGITS]}…"
    return f"{source.file_name} ({source.format}{opset}, {size_text(source.size_bytes)}, {digest})"


def _preprocess(task: Task) -> str | None:
    image = task.preprocess
    if image is None:
        return None
    fitted = {
        "crop": "resized and cropped to",
        "letterbox": "fitted and padded to",
        "stretch": "stretched to",
    }[image.resize]
    return f"{image.channels} image {fitted} {image.width}x{image.height}, {image.layout}"


def _postprocess(task: Task) -> str | None:
    how = task.postprocess
    return None if how is None else how.describe()


def _labels(task: Task, names: Sequence[str]) -> str | None:
    if task.labels is None:
        return None
    some = ", ".join(names[:_SHOWN_LABELS]) + (", …" if len(names) > _SHOWN_LABELS else "")
    return f"{len(names)} classes: {some}"


def _measured(m: Measured) -> tuple[str, ...]:
    accuracy = (
        f"top-1 {100 * m.accuracy.top1:.1f} % (source {100 * m.accuracy.reference:.1f} %)"
        if m.accuracy
        else "not measured"
    )
    return (
        _measured_on(m),
        f"{m.latency_ms:.3f}",
        f"{m.speedup:.2f}x",
        _fidelity(m),
        accuracy,
        f"{m.int8_compute_ops} of {m.compute_ops}",
    )


def _measured_on(m: Measured) -> str:
    return f"{m.runtime} {m.runtime_version} {m.device}, {m.machine}"


def _placed(m: Measured) -> str:
    from edgeserve.runtimes import Placement

    if m.placed is None:
        return f"not recorded, {m.inference_precision}"
    return Placement(
        m.placed.shares,
        m.inference_precision,
        m.compute_ops,
        m.int8_compute_ops,
        m.placed.mac_shares,
        m.placed.left_on_cpu,
    ).describe()


def _placed_here(found: PlacedHere) -> tuple[str, str]:
    if found.placement is None:
        hint = f" (hint: {found.hint})" if found.hint else ""
        return "", f"does not serve here: {found.problem}{hint}"
    error = "" if found.golden_error is None else f"{found.golden_error:.2g}"
    return error, found.placement.describe()


def _fidelity(m: Measured) -> str:
    from edgeserve.cli.quality import worst_text

    f = m.fidelity
    agreement = (
        "" if f.top1_agreement is None else f"top-1 agreement {100 * f.top1_agreement:.1f} %, "
    )
    where = f" in {worst}" if (worst := worst_text(f)) else ""
    return f"{agreement}{f.sqnr_db:.1f} dB{where}, cosine {f.cosine:.4f} ({f.samples} samples)"


def _by_output(m: Measured) -> list[tuple[str, ...]]:
    """Of models with several outputs, what was measured of each."""
    if len(m.fidelity.outputs) < 2:
        return []
    return [
        (
            o.name,
            o.kind,
            "" if o.sqnr_db is None else f"{o.sqnr_db:.1f}",
            "" if o.worst == o.name else o.worst,
            "" if o.agreement is None else f"{100 * o.agreement:.1f} %",
            "" if o.cosine is None else f"{o.cosine:.4f}",
        )
        for o in m.fidelity.outputs
    ]


def _recipe(recipe: Recipe | None) -> str:
    if recipe is None:
        return ""
    words = [recipe.method, recipe.scheme]
    if recipe.per_channel is not None:
        words.append("per channel" if recipe.per_channel else "per tensor")
    words.append(recipe.calibration_method)
    text = ", ".join(w for w in words if w) + f" ({recipe.tool})"
    if recipe.calibration is not None:
        kind = "RANDOM samples" if recipe.calibration.random else "samples"
        text += f", calibrated on {recipe.calibration.samples} {kind}"
    return text


def _digest(variant: Variant) -> str:
    main = next(f for f in variant.files if f.path == variant.main)
    return f"{main.sha256[:_SHOWN_DIGITS]}…"


def _tensors(console: Console, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
    rows = [("input", s.name, s.describe()) for s in inputs]
    rows += [("output", s.name, s.describe()) for s in outputs]
    _table(console, ("tensor", "name", "type"), rows)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _facts(console: Console, facts: Iterable[tuple[str, str | None]]) -> None:
    from edgeserve.tables import print_facts

    print_facts(console, facts, indent=12)


def _table(
    console: Console,
    columns: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    right: tuple[str, ...] = (),
) -> None:
    """Print a table after an empty line; nothing where there are no rows."""
    from edgeserve.tables import print_table

    if shown := list(rows):
        console.print()
        print_table(console, columns, shown, right)
