"""What was asked for against what came of it: what `--strict` and limits refuse, and what is reported as unmet."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from edgeserve.bundle import TASKS, Candidate
from edgeserve.conversion.job import Job
from edgeserve.conversion.options import Options
from edgeserve.conversion.search.choose import Decision, acceptable, optional_entries
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.conversion.sources.native import NATIVE
from edgeserve.conversion.tools.registry import shortest_path
from edgeserve.errors import CheckFailed, UnsupportedModel, UsageError, did_you_mean
from edgeserve.runtimes import runtime
from edgeserve.targets.schema import Target

_WITHOUT_DATA = "--calibrate FOLDER|FILE.npz, or --calibrate random to try without real data"
_WITHOUT_STRICT = "leave out --strict to write the bundle with the variants that serve"


def check_source(options: Options, model: SourceModel) -> None:
    """Raise UsageError for what cannot be had of this source, before anything expensive is done."""
    task = options.source.task
    if task is not None and model.source.format != "huggingface":
        raise UsageError(
            f"--task {task} is not a task of this model",
            cause=f"tasks of Hugging Face models have such names, and {model.path.name} is {model.source.format}",
            hint=did_you_mean(task, TASKS, f"tasks are {', '.join(TASKS)}"),
        )
    wants_int8 = options.precision == "int8" and model.precision in ("fp32", "fp16")
    if wants_int8 and model.facts.convolves and options.calibrate is None and not options.recipes:
        raise UsageError("int8 needs calibration data", hint=_WITHOUT_DATA)
    if not options.explain:
        return
    if model.proto is None:
        raise UsageError(
            f"--explain ranks layers of ONNX models, and {model.path} is {model.format}"
        )
    if model.precision != "fp32":
        raise UsageError(
            f"--explain ranks layers of FP32 models, and this one {model.described_precision()}"
        )
    if options.calibrate is None:
        raise UsageError(
            "--explain needs calibration data",
            cause="it compares the layers of static int8 with those of fp32",
            hint=_WITHOUT_DATA,
        )


def unmet_wishes(job: Job, decisions: Sequence[Decision], recipes: Collection[str]) -> list[str]:
    """What was asked for by name and is not in the bundle: a precision that serves nowhere, a recipe that
    made nothing. `recipes` are those that were tried. Raises CheckFailed with `strict`."""
    options, target, model = job.options, job.target, job.model
    asked = options.precision
    found = []
    if asked != "auto" and not any(v.chosen and v.trial.precision == asked for v in decisions):
        why = next(
            (v.reason for v in decisions if v.trial.precision == asked),
            f"the source {model.described_precision()}"
            if model.is_quantized
            else "its runtimes cannot make one of this model",
        )
        found.append(f"no {asked} variant serves {target.name}: {why}")
    for recipe in options.recipes:
        if recipe in recipes or (recipe == "static-restored" and "static" in recipes):
            continue  # nothing needed restoring
        why = (
            f"the source {model.described_precision()}"
            if model.is_quantized
            else "it repairs static, which was not tried: add --recipe static"
            if recipe == "static-restored"
            else "it fits neither the runtimes and precisions asked for nor the data"
        )
        found.append(f"the recipe {recipe} was not tried for {target.name}: {why}")
    if found and options.strict:
        raise CheckFailed(found[0], cause="--strict was given", hint=_WITHOUT_STRICT)
    return found


def left_out(decisions: Sequence[Decision], target: Target) -> dict[int, str]:
    """The chain's entries that got no variant, optional ones aside, and why."""
    found = {}
    for index, entry in enumerate(target.chain):
        mine = [v for v in decisions if v.trial.entry == index]
        if entry.optional or any(v.chosen for v in mine):
            continue
        # What was not worth trying explains less than what failed.
        reasons = sorted((v.reason for v in mine), key=lambda r: r.startswith("skipped"))
        nothing = f"none of {' '.join(entry.precisions)} can be made from this source and data"
        found[index] = reasons[0] if reasons else nothing
    return found


def enforce(job: Job, decisions: Sequence[Decision], chain: Sequence[Candidate]) -> None:
    """Raise UnsupportedModel when nothing serves the target's device, CheckFailed when a limit is why, or
    with `strict` when a variant was not good enough."""
    target, model, strict = job.target, job.model, job.options.strict
    failed = [f"{v.trial.variant}: {v.reason}" for v in decisions if v.failed]
    # Of several recipes some may fail: what counts is whether one of an entry's did not.
    smaller = {v.trial.entry for v in decisions if v.chosen and v.trial.precision != "fp32"}
    missed = (
        {v.trial.entry for v in decisions if v.failed} - smaller - set(optional_entries(target))
    )
    if strict and missed:
        where = ", ".join(target.chain[entry].label for entry in sorted(missed))
        raise CheckFailed(
            f"no quantized variant was good enough on {where}, and --strict was given",
            cause="; ".join(failed),
            hint=_way_out(failed),
        )
    if strict and (missing := left_out(decisions, target).get(0)) and _has_way(model, target):
        raise CheckFailed(
            f"{target.chain[0].label}, the first choice of {target.name}, got no variant, and "
            "--strict was given",
            cause=missing,
            hint=_WITHOUT_STRICT,
        )
    # A target is about its first device: one that only its CPU fallback could serve is a failure.
    device = target.chain[0].device
    if any(c.device == device for c in chain):
        return
    _blame_limits(job, decisions)
    variants: dict[str, list[str]] = {}
    for decision in decisions:
        entry = target.chain[decision.trial.entry]
        if entry.device == device:
            variants.setdefault(f"{entry.label}: {decision.reason}", []).append(
                decision.trial.variant
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


def _blame_limits(job: Job, decisions: Sequence[Decision]) -> None:
    """Raise CheckFailed where --max-size or --max-latency alone keep variants from the target's device."""
    target, bounds = job.target, job.bounds
    free = msgspec.structs.replace(bounds, max_size=None, max_latency=None)
    entries = [i for i, e in enumerate(target.chain) if e.device == target.chain[0].device]
    fit = [
        v.trial
        for v in decisions
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
            f"{v.trial.variant}: {v.reason}" for v in decisions if v.trial in fit and not v.chosen
        ),
        hint=f"raise the limit: {', '.join(nearest)}",
    )


def _way_out(failed: Sequence[str]) -> str:
    """What helps where --strict found nothing good enough: the bounds that these reasons name."""
    ways = ["leave out --strict to write the bundle without it"]
    for change, flag in (
        ("raise", "--max-drop"),
        ("lower", "--min-sqnr"),
        ("lower", "--min-fidelity"),
    ):
        if any(f"{flag} is" in reason for reason in failed):
            ways.append(f"{change} {flag}")
    return ", or ".join(ways)


def _has_way(model: SourceModel, target: Target) -> bool:
    """Whether converters lead from the model to what the target's first runtime reads."""
    wanted = runtime(target.chain[0].runtime).formats[0]
    try:
        return wanted == model.format or bool(shortest_path(model.format, wanted))
    except UnsupportedModel:
        return False
