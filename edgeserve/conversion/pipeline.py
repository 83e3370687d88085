"""`convert`: read the source, plan, build, prove, choose, write. One call, one bundle, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeserve.bundle import Candidate, Precision, Variant
from edgeserve.bundle.writing import bundle_writer, check_destination
from edgeserve.conversion.assemble import is_here, ordered_chain, report, write_bundle
from edgeserve.conversion.build import Builder
from edgeserve.conversion.choose import Bounds, Trial, Verdict, choose
from edgeserve.conversion.data import Data
from edgeserve.conversion.options import Conversion, Options
from edgeserve.conversion.prove import Subject, prove
from edgeserve.conversion.source import (
    check_runs,
    open_reference,
    proven_batching,
    read_onnx,
    save_onnx,
)
from edgeserve.errors import (
    CheckFailed,
    DataError,
    EdgeServeError,
    SourceError,
    UnsupportedModel,
    UsageError,
)
from edgeserve.runtimes import runtime
from edgeserve.runtimes.detect import resolve_target
from edgeserve.targets import ChainEntry, Target
from edgeserve.tensors import Interface

GOLDEN_SAMPLES: Final = 8
SECONDS_PER_VARIANT: Final = 1.0

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
        subjects, trials = _build(builder, target, interface, options, data)
        proof = prove(
            subjects,
            reference,
            interface,
            data.proof,
            golden_samples=GOLDEN_SAMPLES,
            seconds=SECONDS_PER_VARIANT,
            say=say,
        )
        verdicts = choose(
            _in_order([*trials, *proof.trials], target),
            Bounds(options.max_drop, options.min_fidelity, speed_counts=is_here(target)),
            prefer_order=options.precision != "auto",
        )
        built = {s.variant.id: s.variant for s in subjects}
        chain = ordered_chain(verdicts, target)
        _enforce(chain, verdicts, target, strict=options.strict)
        say("writing the bundle", None)
        manifest = write_bundle(
            writer, model, interface, target, options, built, verdicts, chain, proof, builder
        )
        reference.close()
    return report(destination, target, manifest, verdicts, built, proof, data)


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


def _build(
    builder: Builder, target: Target, interface: Interface, options: Options, data: Data
) -> tuple[list[Subject], list[Trial]]:
    """Build every variant the chain asks for; what could not be built becomes a trial with its problem."""
    subjects: list[Subject] = []
    failed: list[Trial] = []
    made: dict[tuple[str, Precision], Variant | EdgeServeError] = {}
    for index, entry in enumerate(target.chain):
        format_name = runtime(entry.runtime).formats[0]
        for precision in _precisions(entry, options, data):
            key = (format_name, precision)
            try:
                _check_static(entry, interface, target)
                if key not in made:
                    made[key] = builder.build(*key)
                variant = made[key]
                if isinstance(variant, EdgeServeError):
                    raise variant
                subjects.append(Subject(index, entry, variant, builder.files(variant)))
            except DataError:
                raise  # the calibration data are wrong for every variant
            except EdgeServeError as error:
                made.setdefault(key, error)
                problem = str(error) + (f" ({error.hint})" if error.hint else "")
                failed.append(
                    Trial(index, f"{format_name}-{precision}", precision, problem=problem)
                )
    return subjects, failed


def _precisions(entry: ChainEntry, options: Options, data: Data) -> list[Precision]:
    """What to try for an entry. An asked-for precision is backed by fp32, in case it is rejected."""
    if options.precision == "auto":
        return [p for p in entry.precisions if p != "int8" or data.calibration is not None]
    asked: list[Precision] = [options.precision]
    return asked if options.precision == "fp32" else [*asked, "fp32"]


def _check_static(entry: ChainEntry, interface: Interface, target: Target) -> None:
    """Raise UnsupportedModel for dynamic dimensions, the batch aside, where the entry wants none."""
    if not entry.static_shapes:
        return
    for spec in interface.inputs:
        tail = spec.shape[1:] if interface.max_batch else spec.shape
        loose = [d for d in tail if isinstance(d, str)]
        if loose:
            raise UnsupportedModel(
                f"{entry.runtime} on {entry.device} ({target.name}) wants static dimensions",
                cause=f"input '{spec.name}' is {spec.describe()}: {', '.join(loose)} can vary",
                hint=f"fix them: --shape {spec.name}="
                + ",".join(str(d) if isinstance(d, int) else "N" for d in spec.shape),
            )


def _in_order(trials: list[Trial], target: Target) -> list[Trial]:
    def place(trial: Trial) -> tuple[int, int]:
        precisions = target.chain[trial.entry].precisions
        known = trial.precision in precisions
        return trial.entry, precisions.index(trial.precision) if known else -1

    return sorted(trials, key=place)


def _enforce(
    chain: tuple[Candidate, ...], verdicts: list[Verdict], target: Target, *, strict: bool
) -> None:
    failed = [f"{v.trial.variant}: {v.reason}" for v in verdicts if v.failed]
    if strict and failed:
        raise CheckFailed(
            "a variant was rejected, and --strict was given",
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
            cause="; ".join(reasons),
        )
