"""Proof: every variant this machine can open is run on real samples beside the fp32 source.

All sessions see the same samples and are timed in turns, so that a busy moment of the machine hits
them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bench.interleave import Timings, interleave
from edgeserve.bench.statistics import paired_speedup, speedup_interval
from edgeserve.bundle import Accuracy, Fidelity, Measured, Placed, Variant, VariantFiles
from edgeserve.chain import open_apart, settle
from edgeserve.conversion.choose import AS_FAST, Trial
from edgeserve.devices import machine, plan_instances, usable_cores
from edgeserve.errors import (
    DataError,
    DependencyMissing,
    DeviceUnavailable,
    InferenceFailed,
    UsageError,
)
from edgeserve.evaluate import Samples, class_scores, fidelity, top1_accuracy
from edgeserve.runtimes import LoadOptions, Session, engine_version, runtime
from edgeserve.targets import ChainEntry
from edgeserve.tensors import Interface, Tensors

Say = Callable[[str, float | None], None]

# Golden samples travel with the bundle: as many as asked for, within this size, at least one.
GOLDEN_BYTES: Final = 2_000_000
# A quantized variant that takes so many times as long as fp32 is not looked at any further.
_HOPELESS: Final = 3.0
_FIRST_CALLS: Final = 4
# A source that takes less, in ms a call, is timed with the threads that it would be served with.
QUICK_MS: Final = 1.0
_LAPS: Final = 4
_FIRST_LOOK_S: Final = 0.05


class Subject(msgspec.Struct, frozen=True):
    """One variant to be proven for one entry of the chain."""

    entry: int
    chain_entry: ChainEntry
    variant: Variant
    files: VariantFiles


class Proof(msgspec.Struct, frozen=True):
    """The trials, in the order of the subjects, and what the fp32 source did on the same samples.

    `wanted` are its outputs, one a sample.
    """

    trials: tuple[Trial, ...]
    wanted: list[Tensors]
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
    speed_counts: bool,
    threads: int,
    say: Say,
) -> Proof:
    """Open each subject, compare its outputs with the reference's on all samples, time all in turns.

    `seconds` bounds the timing of each subject, `threads` are those of one call (0: the engine's choice). Where `speed_counts`, one that is far slower than fp32
    at first sight is dropped before that. Sessions are closed again; `reference` is left open.
    """
    opened: list[_Opened] = []
    trials: dict[int, Trial] = {}
    try:
        for index, subject in enumerate(subjects):
            trial, session = _open(subject, threads)
            trials[index] = trial
            if session is not None:
                opened.append(_Opened(subject, session))
        if speed_counts:
            opened = _first_look(opened, trials, list(subjects), samples[0])
        wanted = _run_all(opened, trials, list(subjects), reference, samples, say)
        alive = [o for o in opened if len(o.outputs) == len(samples)]
        for item in alive:
            settle(item.session)
        say("timing", None)
        times, problems = _time(alive, list(subjects), reference, samples[0], seconds)
        for index, problem in problems.items():
            trials[index] = msgspec.structs.replace(trials[index], problem=problem)
        alive = [o for o in alive if list(subjects).index(o.subject) not in problems]
        scores = class_scores(interface)
        labels = samples.labels if scores is not None else None
        reference_top1 = (
            top1_accuracy([w[scores] for w in wanted], labels) if scores and labels else None
        )
        for item in alive:
            index = list(subjects).index(item.subject)
            found, accuracy = quality(interface, samples, wanted, item.outputs)
            trials[index] = _measured(item, found, accuracy, times, index, trials[index], threads)
            same = [o for o in alive if _is_fp32_beside(o.subject, item.subject)]
            if same:
                own = times[str(list(subjects).index(same[0].subject))]
                trials[index] = msgspec.structs.replace(
                    trials[index], speedup_high=speedup_interval(own, times[str(index)]).high
                )
        golden = _golden(interface, samples, wanted, golden_samples)
        return Proof(
            tuple(trials[i] for i in range(len(subjects))),
            wanted,
            float(np.median(times["reference"].ms)),
            reference_top1,
            *golden,
        )
    finally:
        for item in opened:
            item.session.close()


class Pace(msgspec.Struct, frozen=True):
    """How fast a variant is: the median of its calls, and its speed in times of the source, compared
    within rounds."""

    latency_ms: float
    speedup: float


def race(
    subjects: Sequence[Subject],
    reference: Session,
    samples: Samples,
    *,
    seconds: float,
    threads: int,
    say: Say,
) -> list[Pace | None]:
    """Time subjects that were proven before, and the source, in turns; None for one that fails now.

    `seconds` for each; up to `_LAPS` times, while it is not clear which come within `AS_FAST` of the
    fastest.
    """
    opened: list[_Opened] = []
    times: dict[str, Timings] = {}
    try:
        for subject in subjects:
            _, session = _open(subject, threads)
            if session is not None:
                opened.append(_Opened(subject, session))
        for lap in range(_LAPS):
            say("timing what comes close" + (", once more" if lap else ""), None)
            more, _ = _time(opened, list(subjects), reference, samples[0], seconds)
            times = {name: _joined(times.get(name), found) for name, found in more.items()}
            if _is_clear({n: t for n, t in times.items() if n != "reference"}):
                break
    finally:
        for item in opened:
            item.session.close()
    paces: list[Pace | None] = []
    for index in range(len(subjects)):
        mine = times.get(str(index))
        if mine is None:
            paces.append(None)
            continue
        speedup = paired_speedup(times["reference"], mine).value
        paces.append(Pace(float(np.median(mine.ms)), speedup))
    return paces


def _joined(before: Timings | None, after: Timings) -> Timings:
    """Both, the rounds of `after` numbered on."""
    if before is None:
        return after
    shift = int(before.rounds.max()) + 1
    return Timings(
        np.concatenate([before.ms, after.ms]),
        np.concatenate([before.rounds, after.rounds + shift]),
        before.warm_up + after.warm_up,
        after.settled,
    )


def _is_clear(times: Mapping[str, Timings]) -> bool:
    """Whether the interval of each one's speed against the fastest leaves no doubt that matters."""
    if not times:
        return True
    best = min(times.values(), key=lambda t: float(np.median(t.ms)))
    found = [paired_speedup(best, t) for t in times.values() if t is not best]
    return not any(i.low < 1 / AS_FAST < i.high and i.high - i.low > AS_FAST - 1 for i in found)


def threads_served(reference: Session, inputs: Tensors) -> int:
    """The threads of one call to time a model with: those it is served with, for one so quick that they
    decide its speed; else 0, the engine's choice.

    Several threads that meet again every few microseconds are as fast as they are near each other, which
    changes with where the system, or the host of a virtual machine, puts them.
    """
    latency_ms = 1000 * _once(reference, inputs)
    if latency_ms >= QUICK_MS:
        return 0
    return plan_instances(0, 0, usable_cores(), latency_ms, "cpu").threads


def quality(
    interface: Interface, samples: Samples, wanted: list[Tensors], outputs: list[Tensors]
) -> tuple[Fidelity, Accuracy | None]:
    """How close outputs are to the source's, and their accuracy where samples have labels."""
    scores = class_scores(interface)
    labels = samples.labels if scores is not None else None
    accuracy = None
    if scores is not None and labels is not None:
        accuracy = Accuracy(
            samples=len(labels),
            top1=top1_accuracy([o[scores] for o in outputs], labels),
            reference=top1_accuracy([w[scores] for w in wanted], labels),
            data_sha256=samples.sha256,
        )
    return fidelity(interface, samples, wanted, outputs), accuracy


def _first_look(
    opened: list[_Opened], trials: dict[int, Trial], subjects: list[Subject], inputs: Tensors
) -> list[_Opened]:
    """Drop what takes several times as long as fp32 on the same runtime: it cannot win."""
    kept = []
    for item in opened:
        beside = next((o for o in opened if _is_fp32_beside(o.subject, item.subject)), None)
        ratio = _once(item.session, inputs) / _once(beside.session, inputs) if beside else 0.0
        if ratio <= _HOPELESS:
            kept.append(item)
            continue
        index = subjects.index(item.subject)
        problem = f"cannot win: {ratio:.1f}x the time of fp32 at first sight"
        trials[index] = msgspec.structs.replace(trials[index], problem=problem)
        item.session.close()
    return kept


def _once(session: Session, inputs: Tensors) -> float:
    """The quickest of a few calls, of short ones of many, in seconds; 0 for a session that fails."""
    best = float("inf")
    calls, end = 0, time.perf_counter() + _FIRST_LOOK_S
    while calls < _FIRST_CALLS or time.perf_counter() < end:
        calls += 1
        began = time.perf_counter()
        try:
            session.run(inputs)
        except InferenceFailed:
            return 0.0  # dropped later, with its own message
        best = min(best, time.perf_counter() - began)
    return best


def _open(subject: Subject, threads: int) -> tuple[Trial, Session | None]:
    entry, variant = subject.chain_entry, subject.variant
    trial = Trial(subject.entry, variant.id, variant.precision, variant.size_bytes)
    options = LoadOptions(
        threads=_threads(entry, threads),
        static_shapes=entry.static_shapes,
        options=entry.options,
    )
    try:
        return trial, open_apart(entry.runtime, subject.files, entry.device, options)
    except (DeviceUnavailable, DependencyMissing) as error:
        return msgspec.structs.replace(trial, unverified=str(error)), None
    except UsageError as error:
        return msgspec.structs.replace(trial, problem=str(error)), None


def _threads(entry: ChainEntry, threads: int) -> int:
    """Those of a call: what is said of the CPU's holds for no other device."""
    return threads if entry.device == "cpu" else 0


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
        try:
            wanted.append(reference.run(inputs))
        except InferenceFailed as error:
            raise DataError(
                f"the source model fails on sample {done} of {samples.source}", cause=error.cause
            ) from None
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
) -> tuple[dict[str, Timings], dict[int, str]]:
    """Times by the subjects' indices, and the problems of those that failed: the others are timed anew."""

    def call(index: int | None, session: Session) -> Callable[[], object]:
        def run() -> None:
            try:
                session.run(inputs)
            except InferenceFailed as error:
                raise _Failed(index, error) from error

        return run

    runs = {"reference": call(None, reference)}
    for item in alive:
        index = subjects.index(item.subject)
        runs[str(index)] = call(index, item.session)
    problems: dict[int, str] = {}
    while True:
        try:
            return interleave(runs, max_seconds=seconds * len(runs)), problems
        except _Failed as failed:
            if failed.index is None:
                raise failed.error from None
            problems[failed.index] = str(failed.error)
            del runs[str(failed.index)]


class _Failed(Exception):
    """Which of the sessions that are timed in turns failed; None: the reference's."""

    def __init__(self, index: int | None, error: InferenceFailed) -> None:
        super().__init__(str(error))
        self.index = index
        self.error = error


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
    threads: int,
) -> Trial:
    entry = item.subject.chain_entry
    mine = times[str(index)]
    speedup = speedup_interval(times["reference"], mine)
    placed = item.session.placement()
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
        threads=_threads(entry, threads),
        placed=Placed(placed.shares, placed.mac_shares, placed.left_on_cpu),
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
