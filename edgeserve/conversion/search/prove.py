"""Proof: every variant this machine can open is run on real samples beside the fp32 source.

All sessions see the same samples and are timed in turns, so that a busy moment of the machine hits
them alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.bench.interleave import Timings
from edgeserve.bench.statistics import speedup_interval
from edgeserve.bundle import Accuracy, Fidelity, Measured, OutputTolerance, Placed
from edgeserve.chain import settle
from edgeserve.conversion.batching import on_engine
from edgeserve.conversion.job import Job
from edgeserve.conversion.search.choose import BESIDE_FP32, BESIDE_SOURCE, Elsewhere, VariantTrial
from edgeserve.conversion.search.timing import (
    Contender,
    OpenContender,
    close_all,
    open_contender,
    open_stand_in,
    quickest,
    threads_for,
    time_in_turns,
)
from edgeserve.conversion.search.tolerance import errors_on
from edgeserve.conversion.sources.reference import Reference
from edgeserve.devices import machine
from edgeserve.errors import DataError, DeviceLost, InferenceFailed
from edgeserve.evaluate import Samples, class_scores, fidelity, top1_accuracy
from edgeserve.progress import Say
from edgeserve.runtimes import Session, engine_version, runtime
from edgeserve.runtimes.guarded import asked_placement
from edgeserve.tensors import Tensors

# Golden samples stored in the bundle: this many, within this size, at least one.
GOLDEN_SAMPLES: Final = 8
GOLDEN_BYTES: Final = 2_000_000
# A quantized variant that takes this many times as long as fp32 is dropped at once.
_HOPELESS: Final = 3.0


class Proof(msgspec.Struct, frozen=True):
    """The trials, in the order of the contenders, and what the fp32 source did on the same samples.

    `wanted` are its outputs, one a sample.
    """

    trials: tuple[VariantTrial, ...]
    wanted: list[Tensors]
    reference_latency_ms: float
    reference_accuracy: float | None
    golden_inputs: Tensors
    golden_outputs: Tensors


def prove(
    job: Job, contenders: Sequence[Contender], reference: Reference, *, seconds: float, say: Say
) -> Proof:
    """Open each contender, compare its outputs with the reference's on all samples, time all in turns.

    `seconds` limits the timing of each contender. Where speed counts, this CPU is the target's: one that is
    far slower than fp32 at first sight is dropped before that. Sessions are closed again; `reference` is
    left open unless it is large.
    """
    samples, threads, speed_counts = job.data.proof, job.threads, job.bounds.speed_counts
    opened: list[OpenContender] = []
    stand_ins: list[OpenContender] = []
    trials: dict[int, VariantTrial] = {}
    try:
        for index, contender in enumerate(contenders):
            trial, session = open_contender(contender, threads)
            if session is not None:
                opened.append(OpenContender(index, contender, session))
            elif trial.unverified is not None and speed_counts and _is_here(contender):
                # The target's own CPU: what does not open on it (bf16 without AVX512-BF16) never will.
                trial = msgspec.structs.replace(trial, unverified=None, problem=trial.unverified)
            elif trial.unverified is not None:
                trial, session = open_stand_in(trial, contender, threads)
                if session is not None:
                    stand_ins.append(OpenContender(index, contender, session))
            trials[index] = trial
        if speed_counts:
            opened = _first_look(opened, trials, samples[0])
        wanted = _run_all([*opened, *stand_ins], trials, reference, samples, say)
        alive = [o for o in opened if len(o.outputs) == len(samples)]
        for item in alive:
            settle(item.session)
        say("timing", None)
        times, problems = time_in_turns(alive, reference, samples[0], seconds)
        reference.make_room()  # finding out where operations run may take another session
        for index, problem in problems.items():
            _note(trials, index, problem=problem)
        alive = [o for o in alive if o.index not in problems]
        scores = class_scores(job.interface, job.model.kinds)
        labels = samples.labels if scores is not None else None
        picked = _golden_picks(samples, wanted)
        reference_top1 = (
            top1_accuracy([w[scores] for w in wanted], labels) if scores and labels else None
        )
        for item in alive:
            index = item.index
            found, accuracy = quality(job, wanted, item.outputs)
            trials[index] = _measured(item, found, accuracy, times, trials[index], threads)
            trials[index] = _with_batching(trials[index], item, job)
            golden = _golden_errors(found, samples, wanted, item.outputs, picked)
            _note(trials, index, golden=golden)
            same = [o for o in alive if _is_fp32_beside(o.contender, item.contender)]
            if same:
                own = times[str(same[0].index)]
                speedup = speedup_interval(own, times[str(index)])
                _note(trials, index, speedup_high=speedup.high, beside=BESIDE_FP32)
        for item in stand_ins:
            if len(item.outputs) == len(samples):
                found, accuracy = quality(job, wanted, item.outputs)
                where = f"{item.contender.chain_entry.runtime}/cpu"
                golden = _golden_errors(found, samples, wanted, item.outputs, picked)
                elsewhere = Elsewhere(where, found, accuracy)
                _note(trials, item.index, elsewhere=elsewhere, golden=golden)
        return Proof(
            tuple(trials[i] for i in range(len(contenders))),
            wanted,
            float(np.median(times["reference"].ms)),
            reference_top1,
            *_golden(job, wanted, picked),
        )
    finally:
        close_all([*opened, *stand_ins])


def _note(trials: dict[int, VariantTrial], index: int, **found: Any) -> None:
    """Add to a trial what was found."""
    trials[index] = msgspec.structs.replace(trials[index], **found)


def quality(
    job: Job, wanted: list[Tensors], outputs: list[Tensors]
) -> tuple[Fidelity, Accuracy | None]:
    """How close outputs are to the source's, and their accuracy where samples have labels."""
    interface, kinds, samples = job.interface, job.model.kinds, job.data.proof
    scores = class_scores(interface, kinds)
    labels = samples.labels if scores is not None else None
    accuracy = None
    if scores is not None and labels is not None:
        accuracy = Accuracy(
            samples=len(labels),
            top1=top1_accuracy([o[scores] for o in outputs], labels),
            reference=top1_accuracy([w[scores] for w in wanted], labels),
            data_sha256=samples.sha256,
            output=scores,
        )
    return fidelity(interface, kinds, samples, wanted, outputs), accuracy


def _is_here(contender: Contender) -> bool:
    """Whether a contender is for a CPU, and its engine is installed here."""
    entry = contender.chain_entry
    return entry.device == "cpu" and engine_version(runtime(entry.runtime)) is not None


def _first_look(
    opened: list[OpenContender],
    trials: dict[int, VariantTrial],
    inputs: Tensors,
) -> list[OpenContender]:
    """Drop what takes several times as long as fp32 on the same runtime: it cannot win."""
    kept = []
    for item in opened:
        beside = next((o for o in opened if _is_fp32_beside(o.contender, item.contender)), None)
        ratio, problem = 0.0, None
        if beside is not None:
            # Where fp32 fails there is nothing to be slower than: it drops out with its own message.
            with contextlib.suppress(InferenceFailed):
                own = quickest(beside.session, inputs)
                try:
                    ratio = quickest(item.session, inputs) / own
                except InferenceFailed as error:
                    problem = str(error)
        if problem is None and ratio <= _HOPELESS:
            kept.append(item)
            continue
        problem = problem or f"skipped: {ratio:.1f}x the time of fp32 at first sight"
        _note(trials, item.index, problem=problem)
        item.session.close()
    return kept


def _run_all(
    opened: list[OpenContender],
    trials: dict[int, VariantTrial],
    reference: Session,
    samples: Samples,
    say: Say,
) -> list[Tensors]:
    """Run every sample through the reference and every contender; a contender that raises drops out."""
    wanted: list[Tensors] = []
    failed: set[int] = set()
    for done, inputs in enumerate(samples, start=1):
        say(f"comparing with the source on {len(samples)} samples", done / len(samples))
        try:
            wanted.append(reference.run(inputs))
        except InferenceFailed as error:
            raise DataError(
                f"the source model fails on sample {done} of {samples.source}", cause=error.cause
            ) from None
        for item in opened:
            if item.index in failed:
                continue
            try:
                item.outputs.append(item.session.run(inputs))
            except InferenceFailed as error:
                failed.add(item.index)
                _note(trials, item.index, problem=str(error))
    return wanted


def _is_fp32_beside(other: Contender, contender: Contender) -> bool:
    """Whether `other` is the fp32 variant of the same entry of the chain as a quantized `contender`."""
    return (
        other.entry == contender.entry
        and other.variant.precision == "fp32"
        and contender.variant.precision != "fp32"
    )


def _measured(
    item: OpenContender,
    found: Fidelity,
    accuracy: Accuracy | None,
    times: Mapping[str, Timings],
    trial: VariantTrial,
    threads: int,
) -> VariantTrial:
    entry = item.contender.chain_entry
    mine = times[str(item.index)]
    speedup = speedup_interval(times["reference"], mine)
    try:
        placed = asked_placement(item.session)
    except DeviceLost as error:
        return msgspec.structs.replace(trial, problem=str(error))
    measured = Measured(
        runtime=entry.runtime,
        runtime_version=engine_version(runtime(entry.runtime)) or "unknown",
        device=entry.device,
        machine=machine().cpu or machine().arch,
        fidelity=found,
        latency_ms=float(np.median(mine.ms)),
        speedup=speedup.value,
        inference_precision=placed.inference_precision,
        int8_compute_ops=placed.int8_compute_ops,
        compute_ops=placed.compute_ops,
        accuracy=accuracy,
        threads=threads_for(entry, threads),
        placed=Placed(placed.shares, placed.mac_shares, placed.left_on_cpu),
    )
    return msgspec.structs.replace(
        trial, measured=measured, speedup_high=speedup.high, beside=BESIDE_SOURCE
    )


def _with_batching(trial: VariantTrial, item: OpenContender, job: Job) -> VariantTrial:
    if trial.measured is None:
        return trial
    batching = on_engine(item.contender.variant, item.session, job.interface, job.data.proof)
    measured = msgspec.structs.replace(trial.measured, batching=batching)
    return msgspec.structs.replace(trial, measured=measured)


def _golden_errors(
    found: Fidelity,
    samples: Samples,
    wanted: list[Tensors],
    outputs: list[Tensors],
    picked: list[int],
) -> tuple[OutputTolerance, ...]:
    requests, want, got = ([every[i] for i in picked] for every in (samples, wanted, outputs))
    return errors_on(found, requests, want, got)


def _golden_picks(samples: Samples, wanted: list[Tensors]) -> list[int]:
    """The indices of the first samples that fit in size and can be stacked on the first."""
    first = samples[0]
    size = sum(a.nbytes for a in first.values()) + sum(a.nbytes for a in wanted[0].values())
    count = max(1, min(GOLDEN_SAMPLES, len(samples), GOLDEN_BYTES // max(size, 1)))
    shapes = [
        {n: a.shape for tensors in (samples[i], wanted[i]) for n, a in tensors.items()}
        for i in range(count)
    ]
    return [i for i in range(count) if shapes[i] == shapes[0]]


def _golden(job: Job, wanted: list[Tensors], picked: list[int]) -> tuple[Tensors, Tensors]:
    """These samples and the source's outputs, stacked along a sample axis."""
    interface, samples = job.interface, job.data.proof
    join = np.concatenate if interface.max_batch else np.stack
    requests = [samples[i] for i in picked]
    inputs = {s.name: join([r[s.name] for r in requests]) for s in interface.inputs}
    outputs = {s.name: join([wanted[i][s.name] for i in picked]) for s in interface.outputs}
    return inputs, outputs
