"""Which variants are worth making for an entry of the target's chain, before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgeserve.bundle import Precision
from edgeserve.conversion.job import Job
from edgeserve.conversion.memory import APART_BYTES
from edgeserve.conversion.tools.registry import shortest_path
from edgeserve.errors import UnsupportedModel
from edgeserve.quantize import VariantPlan, plans_for
from edgeserve.runtimes import runtime
from edgeserve.targets.schema import ChainEntry

QUANTIZED: Final = ("int8", "int4")
# Parameters below which another runtime saves microseconds at best.
_SMALL: Final = 1_000_000
# Recipes by which sources that are not ONNX are quantized in their own format.
_OWN: Final = {"openvino-ir": {"nncf", "weights"}, "tflite": {"static", "dynamic", "weights"}}


def format_for(entry: ChainEntry) -> str:
    """The format that variants of an entry have."""
    return runtime(entry.runtime).formats[0]


def plans_of(job: Job, entry: ChainEntry, carried: Callable[[str], Precision]) -> list[VariantPlan]:
    """What to make for an entry; a plan with `skip` says why it is not made.

    `carried(format)` is the precision in a format of a source that is not FP32.
    """
    model, wanted = job.model, format_for(entry)
    precisions = _precisions(job, entry)
    if entry.optional and not (precisions and _can_measure(job, entry)):
        return []
    if entry.optional and (reason := _not_worth_trying(job, entry)) is not None:
        return [VariantPlan(wanted, entry.precisions[0], "plain", skip=reason)]
    try:
        if wanted != model.format:
            shortest_path(model.format, wanted)
    except UnsupportedModel:
        made = f"no installed converter makes that of {model.format}"
        why = f"{entry.runtime} reads {wanted}, and {made}"
        return [VariantPlan(wanted, model.precision, "plain", skip=why)]
    plans: list[VariantPlan] = []
    if model.precision != "fp32":
        plans.append(VariantPlan(wanted, carried(wanted), "plain"))
        if model.precision != "fp16":
            return plans  # what is quantized already is taken as it is
        precisions = [p for p in precisions if p in QUANTIZED]
    for precision in precisions:
        plans += _plans(job, wanted, precision)
    if model.format != "onnx":
        fit = {"plain", "cast"} | _OWN.get(wanted, set())
        plans = [p for p in plans if p.recipe in fit and not p.skip]
    return [p for p in plans if p.skip or not p.calibrated or job.data.calibration is not None]


def int4_plans(job: Job, entry: ChainEntry) -> list[VariantPlan]:
    """Weights in int4, which `auto` makes only where int8 is too large."""
    takes_int8_only = "int8" in entry.precisions and "int4" not in entry.precisions
    is_fp32_onnx = job.model.precision == "fp32" and job.model.format == "onnx"
    if job.options.precision != "auto" or not takes_int8_only or not is_fp32_onnx:
        return []
    return [p for p in _plans(job, format_for(entry), "int4") if not p.skip]


def _plans(job: Job, wanted: str, precision: Precision) -> list[VariantPlan]:
    return plans_for(
        wanted, precision, job.model.facts, job.target.quantization, job.options.recipes
    )


def _can_measure(job: Job, entry: ChainEntry) -> bool:
    """Whether an optional entry's speed can be measured here: it counts for nothing but that."""
    return job.bounds.speed_counts and runtime(entry.runtime).probe().version is not None


def _not_worth_trying(job: Job, entry: ChainEntry) -> str | None:
    """Why an optional entry is not worth trying with this network, or None."""
    facts, target = job.model.facts, job.target.name
    made_of = "convolutional" if facts.convolves else "matmul"
    if entry.networks not in ("any", made_of):
        return f"skipped: {target} uses {entry.runtime} for {entry.networks} networks only"
    is_large = job.model.source.size_bytes > APART_BYTES
    if is_large and format_for(entry) != job.model.format:
        return (
            f"skipped: converting a model this large for {entry.runtime}, which is optional in {target}, "
            "takes more than ten times its size in memory"
        )
    if facts.parameters < _SMALL:
        return f"skipped: a network this small is not worth another runtime ({entry.runtime})"
    return None


def _precisions(job: Job, entry: ChainEntry) -> list[Precision]:
    """What to try for an entry. An asked-for precision is backed by fp32, in case it is rejected;
    optional entries need no such backing."""
    asked = job.options.precision
    if entry.optional:
        return [p for p in entry.precisions if asked in ("auto", p)]
    if asked == "auto":
        return list(entry.precisions)
    return [asked] if asked == "fp32" else [asked, "fp32"]


def check_static(job: Job, entry: ChainEntry) -> None:
    """Raise UnsupportedModel for dynamic dimensions, the batch aside, where the entry takes none.

    On a CPU static shapes are only quicker: there the batch is fixed, and the rest stays dynamic.
    """
    if not entry.static_shapes or entry.device == "cpu":
        return
    for spec in job.interface.inputs:
        tail = spec.shape[1:] if job.interface.max_batch else spec.shape
        loose = [d for d in tail if isinstance(d, str)]
        if loose:
            raise UnsupportedModel(
                f"{entry.runtime} on {entry.device} ({job.target.name}) needs static dimensions",
                cause=f"input '{spec.name}' is {spec.describe()}: {', '.join(loose)} can vary",
                hint=f"fix them: --shape {spec.name}="
                + ",".join(str(d) if isinstance(d, int) else "N" for d in spec.shape),
            )
