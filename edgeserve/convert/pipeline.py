"""`convert`: read the source, plan, build, prove, choose, write. One call, one bundle, or nothing."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

import edgeserve
from edgeserve.bundle import (
    Bundle,
    Candidate,
    FileEntry,
    Golden,
    Manifest,
    Measured,
    Precision,
    Preprocess,
    Rejected,
    Task,
    Variant,
)
from edgeserve.bundle.manifest import SCHEMA_VERSION
from edgeserve.bundle.writing import BundleWriter, bundle_writer, check_destination
from edgeserve.convert.build import Builder
from edgeserve.convert.choose import Bounds, Trial, Verdict, choose
from edgeserve.convert.prove import Proof, Subject, prove
from edgeserve.convert.source import (
    OnnxSource,
    check_runs,
    open_reference,
    proven_batching,
    read_onnx,
    save_onnx,
)
from edgeserve.devices import machine
from edgeserve.errors import (
    CheckFailed,
    DataError,
    EdgeServeError,
    SourceError,
    UnsupportedModel,
    UsageError,
)
from edgeserve.evaluate import Samples, class_scores, load_labelled, load_samples
from edgeserve.evaluate.datasets import random_samples
from edgeserve.runtimes import runtime
from edgeserve.runtimes.detect import detect_target
from edgeserve.targets import ChainEntry, Target, load_target
from edgeserve.tensors import Interface

GOLDEN_SAMPLES: Final = 8
PROOF_SAMPLES: Final = 256
MIN_HELD_OUT: Final = 32
SECONDS_PER_VARIANT: Final = 2.0

Say = Callable[[str, float | None], None]


class Options(msgspec.Struct, frozen=True):
    """What `convert` is asked for; the command line's flags, one to one.

    `calibrate` is a folder of images, an `.npz` or `.npy`, or the word `random`; `evaluate` a
    labels CSV or an `.npz` with labels; `labels` a text file with one class name a line.
    """

    target: str = "auto"
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    calibrate: str | None = None
    calibration_samples: int = 128
    evaluate: str | None = None
    preprocess: Preprocess | None = None
    labels: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    max_drop: float = 1.0
    min_fidelity: float | None = None
    strict: bool = False
    force: bool = False
    name: str | None = None
    tool_env: bool = True


class Row(msgspec.Struct, frozen=True):
    """One tried variant in the report. `chosen` rows are in the bundle's chain."""

    variant: str
    runtime: str
    device: str
    precision: Precision
    chosen: bool
    reason: str
    size_bytes: int | None = None
    measured: Measured | None = None


class Conversion(msgspec.Struct, frozen=True):
    """What `convert` did: the bundle's path and the report."""

    bundle: str
    target: str
    source_size_bytes: int
    bundle_size_bytes: int
    reference_latency_ms: float
    reference_accuracy: float | None
    proof_samples: int
    proof_source: str
    chain: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]


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
    target = detect_target() if options.target == "auto" else load_target(options.target)
    model = read_onnx(source, options.shapes)
    data = _Data.load(model.interface, options)
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
            Bounds(options.max_drop, options.min_fidelity, speed_counts=_is_here(target)),
            prefer_order=options.precision != "auto",
        )
        built = {s.variant.id: s.variant for s in subjects}
        chain = _chain(verdicts, target)
        _enforce(chain, verdicts, target, strict=options.strict)
        say("writing the bundle", None)
        manifest = _write(
            writer, model, interface, target, options, built, verdicts, chain, proof, builder
        )
        reference.close()
    return _report(destination, target, manifest, verdicts, built, proof, data)


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


class _Data(msgspec.Struct, frozen=True):
    """The samples of one conversion: to calibrate on, and to prove on."""

    calibration: Samples | None
    proof: Samples
    remarks: tuple[str, ...]

    @classmethod
    def load(cls, interface: Interface, options: Options) -> _Data:
        """Raises DataError, before anything expensive is done."""
        remarks: list[str] = []
        pool = _calibration_pool(interface, options)
        calibration = pool.take(options.calibration_samples) if pool else None
        if calibration is not None and calibration.random:
            remarks.append("calibrated on random data: int8 accuracy on real inputs is unknown")
        if options.evaluate is not None:
            labelled = load_labelled(
                Path(options.evaluate), interface, options.preprocess, _classes(options)
            )
            if class_scores(interface) is None:
                remarks.append("the model has no class scores: accuracy is not measured")
            return cls(calibration, labelled, tuple(remarks))
        if pool is None:
            remarks.append("no calibration data: int8 was not tried, fidelity is on random inputs")
            return cls(None, random_samples(interface, MIN_HELD_OUT), tuple(remarks))
        if pool.random:
            return cls(calibration, pool, tuple(remarks))
        held_out = _without(pool, options.calibration_samples)
        if held_out is not None:
            return cls(calibration, held_out.take(PROOF_SAMPLES), tuple(remarks))
        remarks.append("fidelity is on the calibration samples themselves (no --eval, few samples)")
        return cls(calibration, pool.take(PROOF_SAMPLES), tuple(remarks))


def _calibration_pool(interface: Interface, options: Options) -> Samples | None:
    if options.calibrate is None:
        return None
    if options.calibrate == "random":
        return random_samples(interface, options.calibration_samples)
    return load_samples(Path(options.calibrate), interface, options.preprocess)


def _without(pool: Samples, taken: int) -> Samples | None:
    """The samples that `take(taken)` leaves, when they are enough to prove anything."""
    if len(pool) < taken + MIN_HELD_OUT:
        return None
    return pool.leave(taken)


def _classes(options: Options) -> list[str] | None:
    if options.labels is None:
        return None
    path = Path(options.labels)
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable list of classes", cause=str(error)) from None


def _build(
    builder: Builder, target: Target, interface: Interface, options: Options, data: _Data
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
            except EdgeServeError as error:
                made.setdefault(key, error)
                problem = str(error) + (f" ({error.hint})" if error.hint else "")
                failed.append(
                    Trial(index, f"{format_name}-{precision}", precision, problem=problem)
                )
    return subjects, failed


def _precisions(entry: ChainEntry, options: Options, data: _Data) -> list[Precision]:
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


def _is_here(target: Target) -> bool:
    return target.runs_on(machine().arch)


def _chain(verdicts: list[Verdict], target: Target) -> tuple[Candidate, ...]:
    """The chosen trials as candidates: the target's order of devices, and among candidates on the
    same device the fastest measured one first."""
    chosen = [v.trial for v in verdicts if v.chosen]
    devices = list(dict.fromkeys(target.chain[t.entry].device for t in chosen))

    def place(trial: Trial) -> tuple[int, float, int]:
        speed_known = trial.measured is not None and _is_here(target)
        latency = trial.measured.latency_ms if trial.measured and speed_known else float("inf")
        return devices.index(target.chain[trial.entry].device), latency, trial.entry

    return tuple(
        Candidate(
            variant=t.variant,
            runtime=target.chain[t.entry].runtime,
            device=target.chain[t.entry].device,
            static_shapes=target.chain[t.entry].static_shapes,
            options=target.chain[t.entry].options,
        )
        for t in sorted(chosen, key=place)
    )


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


def _write(
    writer: BundleWriter,
    model: OnnxSource,
    interface: Interface,
    target: Target,
    options: Options,
    built: dict[str, Variant],
    verdicts: list[Verdict],
    chain: tuple[Candidate, ...],
    proof: Proof,
    builder: Builder,
) -> Manifest:
    kept = {c.variant for c in chain}
    for name, variant in built.items():
        if name not in kept:
            builder.discard(variant)
    np.savez_compressed(
        writer.root / "golden-inputs.npz", allow_pickle=False, **proof.golden_inputs
    )
    np.savez_compressed(
        writer.root / "golden-outputs.npz", allow_pickle=False, **proof.golden_outputs
    )
    labels = None
    if options.labels is not None:
        (writer.root / "labels.txt").write_bytes(Path(options.labels).read_bytes())
        labels = writer.entry("labels.txt")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=options.name or _name(model.path),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        target=target.name,
        source=model.source,
        interface=interface,
        task=_task(interface, options, labels),
        variants=tuple(
            _with_measurements(v, verdicts) for name, v in built.items() if name in kept
        ),
        chain=chain,
        golden=Golden(
            writer.entry("golden-inputs.npz"),
            writer.entry("golden-outputs.npz"),
            len(next(iter(proof.golden_inputs.values()))),
        ),
        tools=_tools(),
        rejected=tuple(_rejected(v, target, built) for v in verdicts if not v.chosen),
        reference_latency_ms=proof.reference_latency_ms,
    )
    writer.write_manifest(manifest)
    Bundle.open(writer.root)  # what was written must read
    return manifest


def _task(interface: Interface, options: Options, labels: FileEntry | None) -> Task:
    kind: Literal["classification", "generic"] = (
        "classification" if class_scores(interface) and (labels or options.evaluate) else "generic"
    )
    return Task(kind=kind, preprocess=options.preprocess, labels=labels)


def _with_measurements(variant: Variant, verdicts: list[Verdict]) -> Variant:
    """Add what was measured, and tolerate on golden samples twice the error that was measured."""
    measured = tuple(
        v.trial.measured
        for v in verdicts
        if v.chosen and v.trial.variant == variant.id and v.trial.measured is not None
    )
    tolerance = variant.golden_tolerance
    if measured and variant.precision == "int8":
        # The relative RMS error of the worst runtime, from its SQNR.
        worst = max(10 ** (-m.fidelity.sqnr_db / 20) for m in measured)
        tolerance = min(0.9, max(0.05, 2.0 * worst))
    return msgspec.structs.replace(variant, measured=measured, golden_tolerance=tolerance)


def _rejected(verdict: Verdict, target: Target, built: dict[str, Variant]) -> Rejected:
    trial, entry = verdict.trial, target.chain[verdict.trial.entry]
    return Rejected(
        id=trial.variant,
        runtime=entry.runtime,
        device=entry.device,
        precision=trial.precision,
        reason=verdict.reason,
        size_bytes=built[trial.variant].size_bytes if trial.variant in built else None,
        measured=trial.measured,
    )


def _name(path: Path) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem)
    return kept.lstrip("._-") or "model"


def _tools() -> dict[str, str]:
    tools = {"edgeserve": edgeserve.__version__}
    for package in ("numpy", "onnx", "onnxruntime", "openvino", "ai-edge-litert"):
        try:
            tools[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tools


def _report(
    destination: Path,
    target: Target,
    manifest: Manifest,
    verdicts: list[Verdict],
    built: dict[str, Variant],
    proof: Proof,
    data: _Data,
) -> Conversion:
    rows = []
    for verdict in verdicts:
        trial, entry = verdict.trial, target.chain[verdict.trial.entry]
        rows.append(
            Row(
                variant=trial.variant,
                runtime=entry.runtime,
                device=entry.device,
                precision=trial.precision,
                chosen=verdict.chosen,
                reason=verdict.reason,
                size_bytes=built[trial.variant].size_bytes if trial.variant in built else None,
                measured=trial.measured,
            )
        )
    return Conversion(
        bundle=str(destination),
        target=target.name,
        source_size_bytes=manifest.source.size_bytes,
        bundle_size_bytes=Bundle.open(destination).size_bytes,
        reference_latency_ms=proof.reference_latency_ms,
        reference_accuracy=proof.reference_accuracy,
        proof_samples=len(data.proof),
        proof_source=data.proof.source,
        chain=manifest.chain,
        rows=tuple(rows),
        remarks=data.remarks,
    )
