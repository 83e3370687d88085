"""From verdicts to a bundle on disk and a report: no decision is taken here."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from edgeserve.bundle import (
    Batching,
    Bundle,
    Candidate,
    FileEntry,
    Golden,
    Manifest,
    Rejected,
    Task,
    Variant,
)
from edgeserve.bundle.manifest import SCHEMA_VERSION
from edgeserve.bundle.writing import BundleWriter
from edgeserve.conversion.data import Data
from edgeserve.conversion.made import partly
from edgeserve.conversion.options import Conversion, Options, Row
from edgeserve.conversion.search.builder import Builder
from edgeserve.conversion.search.choose import AS_FAST, Bounds, Trial, Verdict
from edgeserve.conversion.search.confirm import with_tolerances
from edgeserve.conversion.search.search import Found
from edgeserve.conversion.sources.native import NATIVE
from edgeserve.conversion.sources.onnx import SourceModel
from edgeserve.devices import machine
from edgeserve.evaluate import Kinds, class_scores
from edgeserve.formats.layers import quantized_in, told_layers
from edgeserve.formats.report import told_passed, told_state
from edgeserve.quantize import LayerError
from edgeserve.runtimes.detect import cpu_problem
from edgeserve.targets.schema import Target
from edgeserve.tensors import Interface, storable
from edgeserve.version import __version__

# Whose documentation says so; LiteRT adds in 32 bits.
_SATURATING: Final = ("onnxruntime", "openvino")
# So many names of nodes fit a remark.
_LISTED: Final = 6
_SATURATES: Final = (
    "int8 was proven on this CPU, which has no VNNI: its sums may saturate, those of a CPU with VNNI do "
    "not (--target cpu-x86-avx2 leaves them room)"
)


def is_here(target: Target) -> bool:
    """Whether what is measured on this CPU says anything about the target's."""
    return target.runs_on(machine().arch) and cpu_problem(target, machine()) is None


def optional_entries(target: Target) -> dict[int, tuple[int, ...]]:
    """The chain's optional entries by index, each with those of the same device that it must outdo."""
    chain = list(enumerate(target.chain))
    return {
        i: tuple(j for j, other in chain if not other.optional and other.device == entry.device)
        for i, entry in chain
        if entry.optional
    }


def ordered_chain(verdicts: list[Verdict], target: Target) -> tuple[Candidate, ...]:
    """The chosen trials as candidates: the target's order of devices, and among candidates on the
    same device the fastest measured one first; those as fast as that in the target's order. Files that nothing
    here could load come last."""
    chosen = [v.trial for v in verdicts if v.chosen]
    devices = list(dict.fromkeys(target.chain[t.entry].device for t in chosen))

    def speed(trial: Trial) -> float:
        return trial.measured.speedup if trial.measured and is_here(target) else 0.0

    best: dict[str, float] = {}
    for trial in chosen:
        device = target.chain[trial.entry].device
        best[device] = max(best.get(device, 0.0), speed(trial))

    def place(trial: Trial) -> tuple[bool, int, float, int]:
        device = target.chain[trial.entry].device
        as_fast = AS_FAST * speed(trial) >= best[device]
        speedup = best[device] if as_fast else speed(trial)
        return not trial.loaded, devices.index(device), -speedup, trial.entry

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


def write_bundle(
    writer: BundleWriter,
    model: SourceModel,
    interface: Interface,
    batching: Batching,
    target: Target,
    options: Options,
    bounds: Bounds,
    found: Found,
    verdicts: list[Verdict],
    chain: tuple[Candidate, ...],
    builder: Builder,
) -> Manifest:
    built, proof = found.built, found.proof
    kept = {c.variant for c in chain}
    for name, variant in built.items():
        if name not in kept:
            builder.discard(variant)
    np.savez_compressed(
        writer.root / "golden-inputs.npz", allow_pickle=False, **storable(proof.golden_inputs)
    )
    np.savez_compressed(
        writer.root / "golden-outputs.npz", allow_pickle=False, **storable(proof.golden_outputs)
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
        task=_task(interface, options, model.kinds, labels),
        variants=tuple(
            with_tolerances(v, verdicts, proof, interface, bounds)
            for v in _sharing([v for n, v in built.items() if n in kept], writer.root)
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
        state=model.state,
        batching=batching,
        outputs=dict(model.kinds),
    )
    writer.write_manifest(manifest)
    Bundle.open(writer.root)  # what was written must read
    return manifest


def _sharing(variants: list[Variant], root: Path) -> list[Variant]:
    """The variants, those whose files are another's stored as that one's (bf16 runs the fp32 file)."""
    first: dict[tuple[tuple[str, str], ...], Variant] = {}
    shared = []
    for variant in variants:
        folder = Path(variant.main).parent
        key = tuple(
            sorted((str(Path(f.path).relative_to(folder)), f.sha256) for f in variant.files)
        )
        owner = first.setdefault(key, variant)
        if owner is not variant and Path(owner.main).name == Path(variant.main).name:
            shutil.rmtree(root / folder)
            variant = msgspec.structs.replace(variant, main=owner.main, files=owner.files)
        shared.append(variant)
    return shared


def _task(interface: Interface, options: Options, kinds: Kinds, labels: FileEntry | None) -> Task:
    kind: Literal["classification", "generic"] = (
        "classification"
        if class_scores(interface, kinds) and (labels or options.evaluate)
        else "generic"
    )
    return Task(kind=kind, preprocess=options.preprocess, labels=labels)


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
    tools = {"edgeserve": __version__}
    for package in ("numpy", "onnx", "onnxruntime", "openvino", "ai-edge-litert"):
        try:
            tools[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tools


def report(
    destination: Path,
    target: Target,
    manifest: Manifest,
    verdicts: list[Verdict],
    found: Found,
    data: Data,
    layers: tuple[LayerError, ...],
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
                failed=verdict.failed,
                size_bytes=trial.size_bytes,
                measured=trial.measured,
            )
        )
    return Conversion(
        bundle=str(destination),
        target=target.name,
        source_size_bytes=manifest.source.size_bytes,
        bundle_size_bytes=Bundle.open(destination).size_bytes,
        reference=f"{NATIVE.get(manifest.source.format, 'onnxruntime')}/cpu",
        reference_latency_ms=found.proof.reference_latency_ms,
        reference_accuracy=found.proof.reference_accuracy,
        proof_samples=len(data.proof),
        proof_source=data.proof.source,
        chain=manifest.chain,
        rows=with_pareto(rows),
        remarks=(
            *data.remarks,
            *_missing(verdicts, target),
            *_repairs(found, manifest.chain),
            *partly(manifest.variants),
            *_unverified(target),
            *_few_threads(rows),
            *_saturation(target, rows),
        ),
        layers=layers,
    )


def left_out(verdicts: Sequence[Verdict], target: Target) -> dict[int, str]:
    """The chain's entries that got no variant, optional ones aside, and why."""
    found = {}
    for index, entry in enumerate(target.chain):
        mine = [v for v in verdicts if v.trial.entry == index]
        if entry.optional or any(v.chosen for v in mine):
            continue
        # What was not worth trying explains less than what failed.
        reasons = sorted((v.reason for v in mine), key=lambda r: r.startswith("cannot win"))
        nothing = f"of {' '.join(entry.precisions)}, nothing can be made of this source and data"
        found[index] = reasons[0] if reasons else nothing
    return found


def unmet_wishes(
    options: Options,
    verdicts: Sequence[Verdict],
    recipes: Collection[str],
    target: Target,
    model: SourceModel,
) -> list[str]:
    """What was asked for by name and did not come about: a precision that serves nowhere, a recipe that
    nothing was made by. `recipes` are those that were tried."""
    asked = options.precision
    found = []
    if asked != "auto" and not any(v.chosen and v.trial.precision == asked for v in verdicts):
        why = next(
            (v.reason for v in verdicts if v.trial.precision == asked),
            f"the source {is_quantized(model)}"
            if model.precision in ("int8", "int4")
            else "its runtimes make none of this model",
        )
        found.append(f"no {asked} variant serves {target.name}: {why}")
    for recipe in options.recipes:
        if recipe in recipes or (recipe == "static-restored" and "static" in recipes):
            continue  # restoring needs something that wants it
        why = (
            f"the source {is_quantized(model)}"
            if model.precision in ("int8", "int4")
            else "it repairs static, which was not tried: add --recipe static"
            if recipe == "static-restored"
            else "it fits neither the runtimes and precisions asked for nor the data"
        )
        found.append(f"the recipe {recipe} was not tried for {target.name}: {why}")
    return found


def fp16_remarks(builder: Builder, chain: Sequence[Candidate]) -> list[str]:
    """What is to be known of FP16 in the chain, where values of the source exceed it."""
    by_id = {c.variant: c for c in chain if c.variant in ("onnx-fp16", "openvino-fp16")}
    wide = builder.beyond_fp16 if by_id else {}
    if not wide:
        return []
    name = max(wide, key=lambda n: wide[n])
    many = f"{len(wide)} values reach" if len(wide) > 1 else "1 value reaches"
    found = [f"{many} the end of FP16 (65504) or beyond, '{name}' up to {wide[name]:.3g}"]
    if "onnx-fp16" in by_id:
        found.append("onnx-fp16 computes them in FP32")
    if "openvino-fp16" in by_id and by_id["openvino-fp16"].device != "cpu":
        found.append(
            f"openvino/{by_id['openvino-fp16'].device}, which computes in FP16, may answer infinity: "
            "its golden samples are checked before it serves"
        )
    return ["; ".join(found)]


def is_quantized(model: SourceModel) -> str:
    """`is int8 already (int8: 3 of 3 layers)`, of a source that is not FP32."""
    told = told_layers(model.layers)
    return f"is {model.precision} already" + (f" ({told})" if told else "")


def source_remarks(model: SourceModel) -> list[str]:
    """What is to be known of the source: that it is quantized; its state, or the one that its callers keep."""
    remarks = []
    if model.precision in ("int8", "int4"):
        remarks.append(
            f"the source {is_quantized(model)}: it is taken as it is, and no recipe was tried"
        )
    elif quantized_in(model.layers):
        remarks.append(f"the source is quantized in part: {told_layers(model.layers)}")
    return [*remarks, *_state_remarks(model)]


def _state_remarks(model: SourceModel) -> list[str]:
    kept, passed = told_state(model.state), told_passed(model.passed)
    own = [f"{kept}; every request starts from the initial one, alone in its batch"] if kept else []
    return [*own, *([passed] if passed else [])]


def _missing(verdicts: Sequence[Verdict], target: Target) -> list[str]:
    return [
        f"{target.chain[index].label}{', the first choice of ' + target.name + ',' if not index else ''} "
        f"got no variant: {reason}"
        for index, reason in left_out(verdicts, target).items()
    ]


def _few_threads(rows: Sequence[Row]) -> list[str]:
    threads = max((r.measured.threads for r in rows if r.measured is not None), default=0)
    if not threads:
        return []
    many = "1 thread" if threads == 1 else f"{threads} threads"
    return [f"timed with {many} a call, as `edgeserve run` serves a model this quick"]


def _saturation(target: Target, rows: Sequence[Row]) -> list[str]:
    """What of int8 was measured here may be worse than on a target whose sums do not saturate."""
    measured = any(
        r.precision == "int8" and r.measured is not None and r.runtime in _SATURATING for r in rows
    )
    if not measured or target.quantization.reduce_range or not machine().int8_saturates:
        return []
    return [_SATURATES]


def with_pareto(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, those marked that no other beats in size, latency and fidelity at once."""

    def costs(row: Row) -> tuple[float, float, float] | None:
        if row.measured is None or row.size_bytes is None or row.failed:
            return None
        measured = row.measured
        return row.size_bytes, 1 / measured.speedup, -measured.fidelity.sqnr_db

    known = [(r.device, c) for r in rows if (c := costs(r)) is not None]

    def beaten(device: str, mine: tuple[float, float, float]) -> bool:
        return any(
            d == device and other != mine and all(o <= m for o, m in zip(other, mine, strict=True))
            for d, other in known
        )

    return tuple(
        msgspec.structs.replace(r, pareto=(c := costs(r)) is not None and not beaten(r.device, c))
        for r in rows
    )


def _repairs(found: Found, chain: Sequence[Candidate]) -> tuple[str, ...]:
    remarks = [
        f"static int8 leaves {len(tail.nodes)} nodes at the end of '{tail.output}' in fp32: {tail.joint} joins "
        f"parts with ranges of {tail.narrow:.3g} and {tail.wide:.3g}, and int8 has one scale for both"
        for tail in found.tails
    ]
    equalized = [
        f"{c.runtime}/{c.device}" for c in chain if c.variant.endswith("-static-equalized")
    ]
    if equalized:
        remarks.append(
            f"plain int8 missed the bounds on {', '.join(equalized)}: giving the channels of neighbouring "
            "layers like ranges repaired it (cross-layer equalization)"
        )
    for done in found.restorations:
        if not done.met:
            remarks.append(
                f"int8 for {done.entry} could not be repaired by restoring layers: {done.reason}"
            )
        elif done.nodes:
            worst = ", ".join(e.node for e in done.layers[:3])
            some = f" ({', '.join(done.nodes)})" if len(done.nodes) <= _LISTED else ""
            count = len(done.nodes)
            nodes = "1 node was" if count == 1 else f"{count} nodes were"
            restored = f"{nodes} restored to fp32{some}; the noisiest layers were {worst}"
            remarks.append(f"{done.base} missed the bounds on {done.entry}: {restored}")
    return tuple(remarks)


def _unverified(target: Target) -> tuple[str, ...]:
    return () if target.unverified is None else (f"{target.name}: {target.unverified}",)
