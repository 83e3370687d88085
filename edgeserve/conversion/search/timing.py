"""Opening variants, and timing them in turns beside the source."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bench.interleave import Timings, interleave
from edgeserve.bench.statistics import paired_speedup
from edgeserve.bundle import Variant, VariantFiles
from edgeserve.chain import open_apart
from edgeserve.conversion.memory import give_back
from edgeserve.conversion.search.choose import AS_FAST, VariantTrial
from edgeserve.devices import plan_instances, usable_cores
from edgeserve.errors import DependencyMissing, DeviceUnavailable, EdgeServeError, InferenceFailed
from edgeserve.evaluate import Samples
from edgeserve.progress import Say
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.targets.schema import ChainEntry
from edgeserve.tensors import Tensors

_FIRST_CALLS: Final = 4
_FIRST_LOOK_S: Final = 0.05
_LAPS: Final = 4


class Contender(msgspec.Struct, frozen=True):
    """One variant to be proven for one entry of the chain."""

    entry: int
    chain_entry: ChainEntry
    variant: Variant
    files: VariantFiles


class OpenContender(msgspec.Struct):
    """A contender with its session, its place among all, and its outputs for the samples so far."""

    index: int
    contender: Contender
    session: Session
    outputs: list[Tensors] = []


def open_contender(contender: Contender, threads: int) -> tuple[VariantTrial, Session | None]:
    """A trial and a session; without one the trial says why."""
    entry, variant = contender.chain_entry, contender.variant
    trial = VariantTrial(contender.entry, variant.id, variant.precision, variant.size_bytes)
    options = LoadOptions(
        threads=threads_for(entry, threads),
        static_shapes=entry.static_shapes,
        options=entry.options,
    )
    try:
        session = open_apart(entry.runtime, contender.files, entry.device, options)
        give_back(variant.size_bytes)
        return trial, session
    except (DeviceUnavailable, DependencyMissing, ImportError) as error:
        return msgspec.structs.replace(trial, unverified=str(error)), None
    except EdgeServeError as error:
        return msgspec.structs.replace(trial, problem=str(error)), None


def close_all(opened: Sequence[OpenContender]) -> None:
    """Close their sessions, and give back what that leaves."""
    for item in opened:
        item.session.close()
    give_back(max((o.contender.variant.size_bytes for o in opened), default=0))


def open_stand_in(
    trial: VariantTrial, contender: Contender, threads: int
) -> tuple[VariantTrial, Session | None]:
    """The file of a variant whose device is not here, on the CPU of its runtime: that says whether it loads,
    and what its numbers are. Without a session the trial says why: it loads nowhere, or its runtime is not
    installed, which says nothing about the file.
    """
    entry = contender.chain_entry
    files = contender.files
    if files.precision == "bf16":  # a CPU without bf16 reads the same file
        files = msgspec.structs.replace(files, precision="fp32")
    options = LoadOptions(threads=threads, static_shapes=entry.static_shapes)
    try:
        return trial, runtime(entry.runtime).load(files, "cpu", options)
    except (DeviceUnavailable, DependencyMissing, ImportError):
        return trial, None
    except EdgeServeError as error:
        problem = f"its file does not load on {entry.runtime}/cpu either: {error}"
        return msgspec.structs.replace(trial, unverified=None, problem=problem), None


def threads_for(entry: ChainEntry, threads: int) -> int:
    """The threads of a call; 0 on other devices than the CPU."""
    return threads if entry.device == "cpu" else 0


def quickest(session: Session, inputs: Tensors) -> float:
    """The quickest of a few calls, of short ones of many, in seconds. Raises InferenceFailed."""
    best = float("inf")
    calls, end = 0, time.perf_counter() + _FIRST_LOOK_S
    while calls < _FIRST_CALLS or time.perf_counter() < end:
        calls += 1
        began = time.perf_counter()
        session.run(inputs)
        best = min(best, time.perf_counter() - began)
    return best


def time_in_turns(
    alive: list[OpenContender],
    reference: Session,
    inputs: Tensors,
    seconds: float,
) -> tuple[dict[str, Timings], dict[int, str]]:
    """Times by the contenders' indices, and the problems of those that failed: the others are timed anew."""

    def call(index: int | None, session: Session) -> Callable[[], object]:
        def run() -> None:
            try:
                session.run(inputs)
            except InferenceFailed as error:
                raise _Failed(index, error) from error

        return run

    runs = {"reference": call(None, reference)}
    for item in alive:
        runs[str(item.index)] = call(item.index, item.session)
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


class Pace(msgspec.Struct, frozen=True):
    """How fast a variant is: the median of its calls, and its speed in times of the source, compared
    within rounds."""

    latency_ms: float
    speedup: float


def race(
    contenders: Sequence[Contender],
    reference: Session,
    samples: Samples,
    *,
    seconds: float,
    threads: int,
    say: Say,
) -> list[Pace | None]:
    """Time contenders that were proven before, and the source, in turns; None for one that fails now.

    `seconds` for each; up to `_LAPS` times, while it is not clear which come within `AS_FAST` of the
    fastest.
    """
    opened: list[OpenContender] = []
    times: dict[str, Timings] = {}
    try:
        for index, contender in enumerate(contenders):
            _, session = open_contender(contender, threads)
            if session is not None:
                opened.append(OpenContender(index, contender, session))
        for lap in range(_LAPS):
            say("timing what comes close" + (", once more" if lap else ""), None)
            more, _ = time_in_turns(opened, reference, samples[0], seconds)
            times = {name: _joined(times.get(name), found) for name, found in more.items()}
            if is_clear({n: t for n, t in times.items() if n != "reference"}):
                break
    finally:
        close_all(opened)
    paces: list[Pace | None] = []
    for index in range(len(contenders)):
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


def is_clear(times: Mapping[str, Timings]) -> bool:
    """Whether the interval of each one's speed against the fastest leaves no doubt that matters."""
    if not times:
        return True
    best = min(times.values(), key=lambda t: float(np.median(t.ms)))
    found = [paired_speedup(best, t) for t in times.values() if t is not best]
    return not any(i.low < 1 / AS_FAST < i.high and i.high - i.low > AS_FAST - 1 for i in found)


def threads_served(reference: Session, inputs: Tensors) -> int:
    """The threads of one call to time a model with: those that a model as quick as the source is served
    with; 0, the engine's choice, for a slow one.

    Several threads that meet again every few microseconds are as fast as they are near each other, which
    changes with where the system, or the host of a virtual machine, puts them.
    """
    latency_ms = 1000 * quickest(reference, inputs)
    return plan_instances(0, 0, usable_cores(), latency_ms, "cpu").threads
