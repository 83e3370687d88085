"""`convert`: read the source, plan, build, prove, choose, write. One call, one bundle, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeserve.bundle import Candidate
from edgeserve.bundle.writing import bundle_writer, check_destination
from edgeserve.conversion.assemble import is_here, ordered_chain, report, write_bundle
from edgeserve.conversion.build import Builder
from edgeserve.conversion.choose import Bounds, Verdict, choose
from edgeserve.conversion.data import Data
from edgeserve.conversion.options import Conversion, Options
from edgeserve.conversion.restore import explain
from edgeserve.conversion.search import Search
from edgeserve.conversion.source import (
    check_runs,
    open_reference,
    proven_batching,
    read_onnx,
    save_onnx,
)
from edgeserve.errors import (
    CheckFailed,
    SourceError,
    UnsupportedModel,
    UsageError,
)
from edgeserve.runtimes.detect import resolve_target
from edgeserve.targets import Target

Say = Callable[[str, float | None], None]


def convert(
    source: Path, destination: Path, options: Options | None = None, say: Say | None = None
) -> Conversion:
    """Turn an ONNX model into a bundle at `destination`.

    `say(what, share)` is told what is going on. Raises SourceError, UnsupportedModel, DataError,
    TargetError, OutputExists, WriteFailed; CheckFailed with `strict` when a variant was rejected.
    On any error the destination is as it was.
    """
    options, say = options or Options(), say or _silent
    _check_options(source, options)
    check_destination(destination, force=options.force)
    say("reading the source", None)
    target = resolve_target(options.target)
    model = read_onnx(source, options.shapes)
    data = Data.load(model.interface, options)
    with bundle_writer(destination, force=options.force) as writer:
        reference_file = save_onnx(model.proto, writer.work / "source.onnx")[0]
        reference = open_reference(model, reference_file)
        check_runs(reference, data.proof)
        interface = proven_batching(model, reference, data.proof)
        builder = Builder(
            model,
            interface,
            target.quantization,
            data.calibration,
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
            speed_counts=is_here(target),
        )
        search = Search(builder, target, interface, options, data, reference, bounds, say)
        found = search.run()
        asked = None if options.precision == "auto" else options.precision
        verdicts = choose(found.trials, bounds, asked=asked)
        chain = ordered_chain(verdicts, target)
        _enforce(chain, verdicts, target, strict=options.strict)
        layers = next((r.layers for r in found.restorations if r.layers), ())
        if options.explain and not layers:
            say("ranking layers", None)
            layers = explain(builder, data, writer.work / "explain")
        say("writing the bundle", None)
        manifest = write_bundle(
            writer, model, interface, target, options, found, verdicts, chain, builder
        )
        reference.close()
    return report(destination, target, manifest, verdicts, found, data, layers)


def _silent(what: str, share: float | None) -> None:
    """The default for `say`."""


def _check_options(source: Path, options: Options) -> None:
    if source.suffix in {".pt2", ".pt", ".pth", ".h5", ".keras", ".tflite", ".xml", ".pkl"}:
        raise SourceError(
            f"{source.name} is not an ONNX file",
            cause="this edgeserve converts ONNX sources",
            hint="export the model to ONNX first (docs/convert.md shows how)",
        )
    if options.precision == "int8" and options.calibrate is None:
        raise UsageError(
            "int8 needs calibration data",
            hint="--calibrate FOLDER|FILE.npz, or --calibrate random to try without real data",
        )


def _enforce(
    chain: tuple[Candidate, ...], verdicts: list[Verdict], target: Target, *, strict: bool
) -> None:
    failed = [f"{v.trial.variant}: {v.reason}" for v in verdicts if v.failed]
    # Of several recipes some may fail: what counts is whether one of an entry's did not.
    smaller = {v.trial.entry for v in verdicts if v.chosen and v.trial.precision != "fp32"}
    missed = {v.trial.entry for v in verdicts if v.failed} - smaller
    if strict and missed:
        raise CheckFailed(
            "no quantized variant was good enough, and --strict was given",
            cause="; ".join(failed),
            hint="leave out --strict to get the bundle without it, or raise --max-drop",
        )
    # A target is about its first device: one that only its CPU fallback could serve is a failure.
    device = target.chain[0].device
    if not any(c.device == device for c in chain):
        reasons = [
            f"{v.trial.variant} on {target.chain[v.trial.entry].label}: {v.reason}"
            for v in verdicts
            if target.chain[v.trial.entry].device == device
        ]
        raise UnsupportedModel(
            f"no variant for the {device} of target {target.name} could be made",
            cause="; ".join(reasons) or "it takes int8 only, which needs calibration data",
            hint=None if reasons else "--calibrate FOLDER|FILE.npz",
        )
