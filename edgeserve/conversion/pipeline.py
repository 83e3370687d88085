"""`convert`: read the source, plan, build, prove, choose, write. One call, one bundle, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgeserve.bundle import Candidate, Source
from edgeserve.bundle.manifest import Option
from edgeserve.bundle.writing import bundle_writer, check_destination
from edgeserve.conversion.assemble import (
    fp16_remarks,
    is_here,
    is_quantized,
    left_out,
    optional_entries,
    ordered_chain,
    report,
    source_remarks,
    unmet_wishes,
    write_bundle,
)
from edgeserve.conversion.batching import by_graph
from edgeserve.conversion.first_run import LEVEL_OPTION, first_run
from edgeserve.conversion.kinds import output_kinds, remarks_on, unmoved
from edgeserve.conversion.options import Conversion, Options, check_options
from edgeserve.conversion.reference import Reference
from edgeserve.conversion.search.builder import Builder
from edgeserve.conversion.search.choose import (
    Bounds,
    Verdict,
    acceptable,
    choose,
    without_worse_than_source,
)
from edgeserve.conversion.search.confirm import confirmed
from edgeserve.conversion.search.restore import explain
from edgeserve.conversion.search.search import Search
from edgeserve.conversion.search.timing import threads_served
from edgeserve.conversion.sources.detect import detect_format, source_digest, to_onnx
from edgeserve.conversion.sources.native import NATIVE, open_native, read_native, with_own_runtime
from edgeserve.conversion.sources.onnx import (
    SourceModel,
    kept_on_disk,
    open_reference,
    read_onnx,
    save_onnx,
)
from edgeserve.conversion.tools.registry import converter_called, run_converter, shortest_path
from edgeserve.errors import CheckFailed, EdgeServeError, UnsupportedModel, UsageError
from edgeserve.progress import Say, silent
from edgeserve.runtimes import Session, runtime
from edgeserve.runtimes.detect import resolve_target
from edgeserve.targets.schema import Target


def convert(
    source: Path, destination: Path, options: Options | None = None, say: Say | None = None
) -> Conversion:
    """Turn a model into a bundle at `destination`.

    `say(what, share)` is told what is going on. Raises SourceError, UnsupportedModel, DataError,
    TargetError, OutputExists, WriteFailed; CheckFailed with `strict` when a variant was rejected.
    On any error the destination is as it was.
    """
    options, say = options or Options(), say or silent
    check_options(options)
    check_destination(destination, force=options.force)
    say("reading the source", None)
    target = resolve_target(options.target)
    with (
        bundle_writer(destination, force=options.force) as writer,
        contextlib.ExitStack() as open_ones,
    ):
        model = kept_on_disk(_read(source, options, writer.work, say), writer.work / "source")
        if options.labels is None and model.labels is not None:
            options = msgspec.structs.replace(options, labels=str(model.labels))
        target = with_own_runtime(target, model)
        _check_calibration(model, options)
        _check_explain(model, options)
        model = _with_kinds(model, options)
        first = first_run(model, options, lambda level: _open(model, 0, _leveled(level)))
        threads = 0
        reference = Reference(
            first.reference,
            model.source.size_bytes,
            lambda: _open(model, threads, _leveled(first.level)),
        )
        open_ones.callback(reference.close)
        data, target = first.data, first.target(target)
        interface, batching = by_graph(model)
        threads = threads_served(reference, data.proof[0])
        if threads:
            reference.close()
        builder = Builder(
            model,
            interface,
            target.quantization,
            data.calibration,
            data.proof,
            root=writer.root,
            work=writer.work,
            tool_env=options.tool_env,
            say=say,
        )
        bounds = Bounds(
            options.max_drop,
            options.min_fidelity,
            options.max_size,
            options.max_latency,
            # A source that is quantized has no floats to be faster than.
            speed_counts=is_here(target) and model.precision in ("fp32", "fp16"),
            min_sqnr=options.min_sqnr,
            sqnr_of=options.min_sqnr_of,
            source=model.precision,
        )
        search = Search(
            builder, model, target, interface, options, data, reference, bounds, threads, say
        )
        found = search.run()
        asked = None if options.precision == "auto" else options.precision
        say("checking what was chosen", None)
        reference.make_room()
        verdicts = confirmed(
            found.trials,
            lambda trials: choose(trials, bounds, asked=asked, optional=optional_entries(target)),
            search.subject,
            found.proof,
            interface,
            bounds,
            threads,
        )
        if model.precision in ("int8", "int4") and is_here(target):
            devices = {i: e.device for i, e in enumerate(target.chain)}
            verdicts = without_worse_than_source(verdicts, model.source.size_bytes, devices)
        chain = ordered_chain(verdicts, target)
        _enforce(chain, verdicts, target, model, bounds, strict=options.strict)
        unmet = unmet_wishes(options, verdicts, found.recipes, target, model)
        if unmet and options.strict:
            raise CheckFailed(
                unmet[0],
                cause="--strict was given",
                hint="leave out --strict to get the bundle with what serves instead",
            )
        notes = (
            *source_remarks(model),
            *remarks_on(interface, model.kinds),
            *unmoved(found.proof.wanted),
            *fp16_remarks(builder, chain),
        )
        data = msgspec.structs.replace(data, remarks=(*data.remarks, *notes, *unmet))
        layers = next((r.layers for r in found.restorations if r.layers), ())
        if options.explain and not layers:
            say("ranking layers", None)
            problem: object = "static int8 quantizes none"
            try:
                layers = explain(builder, data, writer.work / "explain")
            except EdgeServeError as error:
                problem = error
            if not layers:
                remark = f"layers could not be ranked: {problem}"
                data = msgspec.structs.replace(data, remarks=(*data.remarks, remark))
        say("writing the bundle", None)
        manifest = write_bundle(
            writer,
            model,
            interface,
            batching,
            target,
            options,
            bounds,
            found,
            verdicts,
            chain,
            builder,
        )
    return report(destination, target, manifest, verdicts, found, data, layers)


def _read(source: Path, options: Options, work: Path, say: Say) -> SourceModel:
    """The source, through ONNX where its framework's own format cannot be opened by a runtime."""
    format_name = detect_format(source)
    if format_name in NATIVE:
        if options.shapes:
            raise UsageError(f"--shape does not work on {format_name} sources")
        return read_native(source, format_name)
    imported = to_onnx(
        source, format_name, options.source, options.shapes, work,
        tool_env=options.tool_env, say=say,
    )  # fmt: skip
    model = read_onnx(imported.onnx, imported.shapes)
    if options.simplify:
        model = _simplified(model, options, work, say)
    if format_name == "onnx":
        return model
    sha256, size = source_digest(source)
    verified = imported.verification
    told = Source(
        format_name,
        source.name,
        sha256,
        size,
        opset=model.source.opset,
        framework=f"{verified.framework} {verified.framework_version}" if verified else None,
        import_error=verified.relative_rms_error if verified else None,
    )
    labels = imported.onnx.parent / "labels.txt"
    return msgspec.structs.replace(
        model, path=source, source=told, labels=labels if labels.is_file() else None
    )


def _simplified(model: SourceModel, options: Options, work: Path, say: Say) -> SourceModel:
    """The same function in fewer nodes; the converter verifies that. What is told of the source stays."""
    folder = work / "simplified"
    (folder / "out").mkdir(parents=True)
    whole = save_onnx(model.proto, folder / "model.onnx")[0]
    say("simplifying", None)
    file = run_converter(
        converter_called("onnx-slim"), whole, folder / "out", {},
        tool_env=options.tool_env, say=say,
    )[0]  # fmt: skip
    smaller = read_onnx(file)
    return msgspec.structs.replace(smaller, path=model.path, source=model.source)


def _open(
    model: SourceModel, threads: int = 0, options: Mapping[str, Option] | None = None
) -> Session:
    if model.file is None:
        return open_native(model, threads)
    return open_reference(model, model.file, threads, options)


def _leveled(level: str | None) -> dict[str, Option]:
    return {} if level is None else {LEVEL_OPTION: level}


def _with_kinds(model: SourceModel, options: Options) -> SourceModel:
    """The model with what its outputs hold. Raises UsageError for options that name no output of it."""
    names = [s.name for s in model.interface.outputs]
    for name in options.min_sqnr_of:
        if name not in names:
            raise UsageError(
                f"--min-sqnr: the model has no output '{name}'",
                hint=f"its outputs are {', '.join(names)}",
            )
    kinds = output_kinds(
        model.interface,
        model.proto,
        asked=options.output_kinds,
        labels=None if options.labels is None else Path(options.labels),
        labelled=options.evaluate is not None,
    )
    return msgspec.structs.replace(model, kinds=kinds)


def _check_calibration(model: SourceModel, options: Options) -> None:
    """Raise UsageError for a convolutional network in int8 without data: static int8 is all it gains by."""
    asked = options.precision == "int8" and model.precision in ("fp32", "fp16")
    if asked and model.facts.convolves and options.calibrate is None and not options.recipes:
        raise UsageError(
            "int8 needs calibration data",
            hint="--calibrate FOLDER|FILE.npz, or --calibrate random to try without real data",
        )


def _check_explain(model: SourceModel, options: Options) -> None:
    """Raise UsageError where no layers can be ranked, before anything else is done."""
    if not options.explain:
        return
    if model.proto is None:
        raise UsageError(
            f"--explain ranks layers of ONNX models, and {model.path} is {model.format}"
        )
    if model.precision != "fp32":
        raise UsageError(
            f"--explain ranks layers of FP32 models, and this one {is_quantized(model)}"
        )
    if options.calibrate is None:
        raise UsageError(
            "--explain needs calibration data",
            cause="it compares the layers of static int8 with those of fp32",
            hint="--calibrate FOLDER|FILE.npz, or --calibrate random to try without real data",
        )


def _way_out(failed: Sequence[str]) -> str:
    """What helps where --strict found nothing good enough: the bounds that these reasons name."""
    ways = ["leave out --strict to get the bundle without it"]
    for change, flag in (
        ("raise", "--max-drop"),
        ("lower", "--min-sqnr"),
        ("lower", "--min-fidelity"),
    ):
        if any(f"{flag} is" in reason for reason in failed):
            ways.append(f"{change} {flag}")
    return ", or ".join(ways)


def _enforce(
    chain: tuple[Candidate, ...],
    verdicts: list[Verdict],
    target: Target,
    model: SourceModel,
    bounds: Bounds,
    *,
    strict: bool,
) -> None:
    failed = [f"{v.trial.variant}: {v.reason}" for v in verdicts if v.failed]
    # Of several recipes some may fail: what counts is whether one of an entry's did not.
    smaller = {v.trial.entry for v in verdicts if v.chosen and v.trial.precision != "fp32"}
    missed = {v.trial.entry for v in verdicts if v.failed} - smaller - set(optional_entries(target))
    if strict and missed:
        where = ", ".join(target.chain[entry].label for entry in sorted(missed))
        raise CheckFailed(
            f"no quantized variant was good enough on {where}, and --strict was given",
            cause="; ".join(failed),
            hint=_way_out(failed),
        )
    if strict and (missing := left_out(verdicts, target).get(0)) and _has_way(model, target):
        raise CheckFailed(
            f"{target.chain[0].label}, the first choice of {target.name}, got no variant, and "
            "--strict was given",
            cause=missing,
            hint="leave out --strict to get the bundle with what serves instead",
        )
    # A target is about its first device: one that only its CPU fallback could serve is a failure.
    device = target.chain[0].device
    if any(c.device == device for c in chain):
        return
    _blame_limits(verdicts, target, bounds)
    variants: dict[str, list[str]] = {}
    for verdict in verdicts:
        entry = target.chain[verdict.trial.entry]
        if entry.device == device:
            variants.setdefault(f"{entry.label}: {verdict.reason}", []).append(
                verdict.trial.variant
            )
    reasons = [f"{', '.join(names)} on {reason}" for reason, names in variants.items()]
    failure = UnsupportedModel(
        f"no variant for the {device} of target {target.name} could be made",
        cause="; ".join(reasons) or "it takes int8 only, which needs calibration data",
        hint=None if reasons else "--calibrate FOLDER|FILE.npz",
    )
    if any("cannot convert" in reason for reason in reasons):
        # The source ran there, or there would have been nothing to prove variants against.
        failure.hint = (
            f"{NATIVE.get(model.format, 'onnxruntime')}/cpu can run the model: take a target whose chain "
            f"has it; edgeserve check {model.path.name} --target {target.name} lists what each runtime supports"
        )
    raise failure


def _blame_limits(verdicts: list[Verdict], target: Target, bounds: Bounds) -> None:
    """Raise CheckFailed where --max-size or --max-latency alone keep variants from the target's device."""
    free = msgspec.structs.replace(bounds, max_size=None, max_latency=None)
    entries = [i for i, e in enumerate(target.chain) if e.device == target.chain[0].device]
    fit = [
        v.trial
        for v in verdicts
        if v.trial.entry in entries
        and acceptable(v.trial, free)
        and not acceptable(v.trial, bounds)
    ]
    if not fit:
        return
    nearest = []
    if bounds.max_size is not None:
        size, name = min((t.size_bytes or 0, t.variant) for t in fit)
        nearest.append(f"{name} has {size} bytes")
    timed = [(t.measured.latency_ms, t.variant) for t in fit if t.measured is not None]
    if bounds.max_latency is not None and timed:
        latency_ms, name = min(timed)
        nearest.append(f"{name} takes {latency_ms:.3g} ms")
    raise CheckFailed(
        f"no variant for the {target.chain[0].device} of target {target.name} is within the limits",
        cause="; ".join(
            f"{v.trial.variant}: {v.reason}" for v in verdicts if v.trial in fit and not v.chosen
        ),
        hint=f"raise the limit: {', '.join(nearest)}",
    )


def _has_way(model: SourceModel, target: Target) -> bool:
    """Whether converters lead from the model to what the target's first runtime reads."""
    wanted = runtime(target.chain[0].runtime).formats[0]
    try:
        return wanted == model.format or bool(shortest_path(model.format, wanted))
    except UnsupportedModel:
        return False
