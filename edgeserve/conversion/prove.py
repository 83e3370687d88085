"""Proof: every variant this machine can open is run on real samples beside the fp32 source.

All sessions see the same samples and are timed in turns, so that a busy moment of the machine hits
them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bench.interleave import Timings, interleave
from edgeserve.bench.statistics import speedup_interval
from edgeserve.bundle import Accuracy, Fidelity, Measured, Variant, VariantFiles
from edgeserve.conversion.choose import Trial
from edgeserve.devices import machine
from edgeserve.errors import (
    DependencyMissing,
    DeviceUnavailable,
    InferenceFailed,
    UsageError,
)
from edgeserve.evaluate import Samples, class_scores, fidelity, top1_accuracy
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.targets import ChainEntry
from edgeserve.tensors import Interface, Tensors

Say = Callable[[str, float | None], None]

# Golden samples travel with the bundle: as many as asked for, within this size, at least one.
GOLDEN_BYTES: Final = 2_000_000


class Subject(msgspec.Struct, frozen=True):
    """One variant to be proven for one entry of the chain."""

    entry: int
    chain_entry: ChainEntry
    variant: Variant
    files: VariantFiles


class Proof(msgspec.Struct, frozen=True):
    """The trials, in the order of the subjects, and what the fp32 source did on the same samples."""

    trials: tuple[Trial, ...]
    reference_latency_ms: float
    reference_accuracy: float | None
    golden_inputs: Tensors
    golden_outputs: Tensors


class _Opened(msgspec.Struct):
    subject: Subject
    session: Session
    outputs: list[Tensors] = []


def prove(
    subjects: Sequence[Subject],
    reference: Session,
    interface: Interface,
    samples: Samples,
    *,
    golden_samples: int,
    seconds: float,
    say: Say,
) -> Proof:
    """Open each subject, compare its outputs with the reference's on all samples, time all in turns.

    `seconds` bounds the timing of each subject. Sessions are closed again; `reference` is left open.
    """
    opened: list[_Opened] = []
    trials: dict[int, Trial] = {}
    try:
        for index, subject in enumerate(subjects):
            trial, session = _open(subject)
            trials[index] = trial
            if session is not None:
                opened.append(_Opened(subject, session))
        wanted = _run_all(opened, trials, list(subjects), reference, samples, say)
        alive = [o for o in opened if len(o.outputs) == len(samples)]
        say("timing", None)
        times = _time(alive, list(subjects), reference, samples[0], seconds)
        scores = class_scores(interface)
        labels = samples.labels if scores is not None else None
        reference_top1 = (
            top1_accuracy([w[scores] for w in wanted], labels) if scores and labels else None
        )
        for item in alive:
            index = list(subjects).index(item.subject)
            accuracy = None
            if scores and labels and reference_top1 is not None:
                accuracy = Accuracy(
                    samples=len(labels),
                    top1=top1_accuracy([o[scores] for o in item.outputs], labels),
                    reference=reference_top1,
                    data_sha256=samples.sha256,
                )
            found = fidelity(interface, wanted, item.outputs)
            trials[index] = _measured(item, found, accuracy, times, index, trials[index])
            same = [o for o in alive if _is_fp32_beside(o.subject, item.subject)]
            if same:
                own = times[str(list(subjects).index(same[0].subject))]
                trials[index] = msgspec.structs.replace(
                    trials[index], speedup_high=speedup_interval(own, times[str(index)]).high
                )
        golden = _golden(interface, samples, wanted, golden_samples)
        return Proof(
            tuple(trials[i] for i in range(len(subjects))),
            float(np.median(times["reference"].ms)),
            reference_top1,
            *golden,
        )
    finally:
        for item in opened:
            item.session.close()


def _open(subject: Subject) -> tuple[Trial, Session | None]:
    entry, variant = subject.chain_entry, subject.variant
    trial = Trial(subject.entry, variant.id, variant.precision)
    options = LoadOptions(static_shapes=entry.static_shapes, options=entry.options)
    try:
        return trial, runtime(entry.runtime).load(subject.files, entry.device, options)
    except (DeviceUnavailable, DependencyMissing) as error:
        return msgspec.structs.replace(trial, unverified=str(error)), None
    except UsageError as error:
        return msgspec.structs.replace(trial, problem=str(error)), None


def _run_all(
    opened: list[_Opened],
    trials: dict[int, Trial],
    subjects: list[Subject],
    reference: Session,
    samples: Samples,
    say: Say,
) -> list[Tensors]:
    """Run every sample through the reference and every subject; a subject that raises drops out."""
    wanted: list[Tensors] = []
    failed: set[int] = set()
    for done, inputs in enumerate(samples, start=1):
        say(f"comparing with the source on {len(samples)} samples", done / len(samples))
        wanted.append(reference.run(inputs))
        for item in opened:
            index = subjects.index(item.subject)
            if index in failed:
                continue
            try:
                item.outputs.append(item.session.run(inputs))
            except InferenceFailed as error:
                failed.add(index)
                trials[index] = msgspec.structs.replace(trials[index], problem=str(error))
    return wanted


def _time(
    alive: list[_Opened],
    subjects: list[Subject],
    reference: Session,
    inputs: Tensors,
    seconds: float,
) -> dict[str, Timings]:
    def call(session: Session) -> Callable[[], object]:
        return lambda: session.run(inputs)

    runs = {"reference": call(reference)}
    runs |= {str(subjects.index(o.subject)): call(o.session) for o in alive}
    return interleave(runs, max_seconds=seconds * len(runs))


def _is_fp32_beside(other: Subject, subject: Subject) -> bool:
    """Whether `other` is the fp32 variant of the same entry of the chain as a quantized `subject`."""
    return (
        other.entry == subject.entry
        and other.variant.precision == "fp32"
        and subject.variant.precision != "fp32"
    )


def _measured(
    item: _Opened,
    found: Fidelity,
    accuracy: Accuracy | None,
    times: Mapping[str, Timings],
    index: int,
    trial: Trial,
) -> Trial:
    entry = item.subject.chain_entry
    mine = times[str(index)]
    speedup = speedup_interval(times["reference"], mine)
    placed = item.session.placement()
    measured = Measured(
        runtime=entry.runtime,
        runtime_version=runtime(entry.runtime).probe().version or "unknown",
        device=entry.device,
        machine=machine().cpu or machine().arch,
        fidelity=found,
        latency_ms=float(np.median(mine.ms)),
        speedup=speedup.value,
        inference_precision=placed.inference_precision,
        int8_compute_ops=placed.int8_compute_ops,
        compute_ops=placed.compute_ops,
        accuracy=accuracy,
    )
    return msgspec.structs.replace(trial, measured=measured, speedup_high=speedup.high)


def _golden(
    interface: Interface, samples: Samples, wanted: list[Tensors], count: int
) -> tuple[Tensors, Tensors]:
    """The first samples and the source's outputs, stacked along a sample axis."""
    first = samples[0]
    size = sum(a.nbytes for a in first.values()) + sum(a.nbytes for a in wanted[0].values())
    count = max(1, min(count, len(samples), GOLDEN_BYTES // size))
    chosen = [first, *(samples[i] for i in range(1, count))]
    join = np.concatenate if interface.max_batch else np.stack
    # Samples of differing dynamic shapes cannot be stacked: keep those like the first.
    shapes = {n: a.shape for n, a in first.items()}
    alike = [i for i, c in enumerate(chosen) if {n: a.shape for n, a in c.items()} == shapes]
    inputs = {s.name: join([chosen[i][s.name] for i in alike]) for s in interface.inputs}
    outputs = {s.name: join([wanted[i][s.name] for i in alike]) for s in interface.outputs}
    return inputs, outputs
