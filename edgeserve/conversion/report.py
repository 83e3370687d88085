"""What `convert` reports: a row for each variant that was tried, and remarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle import (
    Bundle,
    Candidate,
    Manifest,
    Measured,
    Precision,
    Task,
    Variant,
)
from edgeserve.conversion.demands import left_out
from edgeserve.conversion.job import Job
from edgeserve.conversion.search.builder import Builder
from edgeserve.conversion.search.choose import Decision
from edgeserve.conversion.search.search import Found
from edgeserve.conversion.sources.kinds import remarks_on, unmoved
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.conversion.sources.native import NATIVE
from edgeserve.devices import machine
from edgeserve.formats.layers import layers_text, quantized_in
from edgeserve.formats.report import passed_text, state_text
from edgeserve.quantize import LayerError
from edgeserve.targets.schema import Target

# Whose documentation says so; LiteRT adds in 32 bits.
_SATURATING: Final = ("onnxruntime", "openvino")
# Maximum names of nodes in a remark.
_LISTED: Final = 6
_SATURATES: Final = (
    "int8 was proven on this CPU, which has no VNNI: sums may saturate here that do not on a CPU with VNNI "
    "(--target cpu-x86-avx2 leaves headroom)"
)


class VariantRow(msgspec.Struct, frozen=True):
    """One tried variant in the report. `chosen` rows are in the bundle's chain; `failed` ones broke a
    bound; of the others, none on the same device is at once smaller, faster and closer to the source
    than a `pareto` one."""

    variant: str
    runtime: str
    device: str
    precision: Precision
    chosen: bool
    reason: str
    failed: bool = False
    pareto: bool = False
    size_bytes: int | None = None
    measured: Measured | None = None


class Conversion(msgspec.Struct, frozen=True):
    """What `convert` did: the bundle's path and the report. `reference` is where the source ran, `task` what
    the bundle says of images and answers."""

    bundle: str
    target: str
    source_size_bytes: int
    bundle_size_bytes: int
    reference: str
    reference_latency_ms: float
    reference_accuracy: float | None
    proof_samples: int
    proof_source: str
    chain: tuple[Candidate, ...]
    rows: tuple[VariantRow, ...]
    remarks: tuple[str, ...]
    layers: tuple[LayerError, ...] = ()
    task: Task = Task()


def report(
    destination: Path,
    job: Job,
    manifest: Manifest,
    found: Found,
    decisions: Sequence[Decision],
    notes: Sequence[str],
    layers: tuple[LayerError, ...],
) -> Conversion:
    """The report on a written bundle; `notes` are remarks that only the conversion itself could make."""
    target, data = job.target, job.data
    rows = [_row(decision, target) for decision in decisions]
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
            *source_remarks(job.model),
            *job.answering.remarks,
            *remarks_on(job.interface, job.model.kinds),
            *unmoved(found.proof.wanted),
            *notes,
            *_missing(decisions, target),
            *_repairs(found, manifest.chain),
            *partly(manifest.variants),
            *_unverified(target),
            *_few_threads(rows),
            *_saturation(target, rows),
        ),
        layers=layers,
        task=manifest.task,
    )


def _row(decision: Decision, target: Target) -> VariantRow:
    trial, entry = decision.trial, target.chain[decision.trial.entry]
    return VariantRow(
        variant=trial.variant,
        runtime=entry.runtime,
        device=entry.device,
        precision=trial.precision,
        chosen=decision.chosen,
        reason=decision.reason,
        failed=decision.failed,
        size_bytes=trial.size_bytes,
        measured=trial.measured,
    )


def with_pareto(rows: Sequence[VariantRow]) -> tuple[VariantRow, ...]:
    """The rows, those marked that no other beats in size, latency and fidelity at once."""

    def costs(row: VariantRow) -> tuple[float, float, float] | None:
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


def source_remarks(model: SourceModel) -> list[str]:
    """What is to be known of the source: that it is quantized; its state, or the one that its callers keep."""
    remarks = []
    if model.is_quantized:
        remarks.append(
            f"the source {model.described_precision()}: it is used as it is, and no recipe was tried"
        )
    elif quantized_in(model.layers):
        remarks.append(f"the source is quantized in part: {layers_text(model.layers)}")
    return [*remarks, *_state_remarks(model)]


def _state_remarks(model: SourceModel) -> list[str]:
    kept, passed = state_text(model.state), passed_text(model.passed)
    own = [f"{kept}; every request starts from the initial one, alone in its batch"] if kept else []
    return [*own, *([passed] if passed else [])]


def fp16_remarks(builder: Builder, chain: Sequence[Candidate]) -> list[str]:
    """What is to be known of FP16 in the chain, where values of the source exceed it."""
    by_id = {c.variant: c for c in chain if c.variant in ("onnx-fp16", "openvino-fp16")}
    wide = builder.onnx.beyond_fp16 if by_id else {}
    if not wide:
        return []
    name = max(wide, key=lambda n: wide[n])
    many = f"{len(wide)} values reach or exceed" if len(wide) > 1 else "1 value reaches or exceeds"
    found = [f"{many} the largest FP16 number (65504), '{name}' up to {wide[name]:.3g}"]
    if "onnx-fp16" in by_id:
        found.append("onnx-fp16 computes them in FP32")
    if "openvino-fp16" in by_id and by_id["openvino-fp16"].device != "cpu":
        found.append(
            f"openvino/{by_id['openvino-fp16'].device}, which computes in FP16, may return infinity: "
            "its golden samples are checked before it serves"
        )
    return ["; ".join(found)]


def _missing(decisions: Sequence[Decision], target: Target) -> list[str]:
    return [
        f"{target.chain[index].label}{', the first choice of ' + target.name + ',' if not index else ''} "
        f"got no variant: {reason}"
        for index, reason in left_out(decisions, target).items()
    ]


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
            f"plain int8 missed the bounds on {', '.join(equalized)}: balancing the channel ranges of "
            "neighbouring layers repaired it (cross-layer equalization)"
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


def partly(variants: Iterable[Variant]) -> list[str]:
    """Remarks on quantized variants in which some layers kept more bits."""
    found = []
    for variant in variants:
        done, total = quantized_in(variant.layers), sum(variant.layers.values())
        if variant.precision in ("int8", "int4") and done < total:
            found.append(f"{variant.id} is quantized in part: {layers_text(variant.layers)}")
    return found


def _unverified(target: Target) -> tuple[str, ...]:
    return () if target.unverified is None else (f"{target.name}: {target.unverified}",)


def _few_threads(rows: Sequence[VariantRow]) -> list[str]:
    threads = max((r.measured.threads for r in rows if r.measured is not None), default=0)
    if not threads:
        return []
    many = "1 thread" if threads == 1 else f"{threads} threads"
    return [f"timed with {many} per call, as `edgeserve run` serves a model this fast"]


def _saturation(target: Target, rows: Sequence[VariantRow]) -> list[str]:
    """A remark where int8 measured here may be worse than on the target, whose sums do not saturate."""
    measured = any(
        r.precision == "int8" and r.measured is not None and r.runtime in _SATURATING for r in rows
    )
    if not measured or target.quantization.reduce_range or not machine().int8_saturates:
        return []
    return [_SATURATES]
