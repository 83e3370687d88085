"""Offline: all work is there from the start, and only samples per second count.

Every subject is tried in a few ways (callers side by side, batch sizes); the ways of all subjects take
turns in short slices, so that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import msgspec
import numpy as np

from edgeserve.bench.subjects import OpenSubject, Skipped, skipped_because
from edgeserve.bundle import Bundle
from edgeserve.chain import settle
from edgeserve.devices.names import device_kind
from edgeserve.errors import DeviceLost, EdgeServeError, NotMeasured
from edgeserve.runtimes import Session
from edgeserve.tensors import Tensors, join_batches

BATCHES: Final = (4, 16)
ROUNDS: Final = 5
_FIRST_CALLS: Final = 3  # the first may compile; the others tell how long a call takes
_ACCELERATOR_CALLERS: Final = 2  # one computes while the other's tensors travel


class Way(msgspec.Struct, frozen=True):
    """`callers` calls side by side, each of `batch` samples on `threads` threads (0: the engine's choice)."""

    callers: int
    threads: int
    batch: int

    def describe(self) -> str:
        callers = "1 caller" if self.callers == 1 else f"{self.callers} callers"
        threads = (
            "" if self.threads == 0 else f" x {self.threads} thread" + "s" * (self.threads > 1)
        )
        return f"{callers}{threads}, batch {self.batch}"


class Rate(msgspec.Struct, frozen=True):
    """Samples per second one way: the median of `slices`, which are in the order of the rounds."""

    way: Way
    samples_per_s: float
    slices: tuple[float, ...]


class NoRate(msgspec.Struct, frozen=True):
    """A way that was not measured, and why: it `failed`, or would have taken too long (`slow`)."""

    way: Way
    kind: Literal["failed", "slow"]
    reason: str


class Offline(msgspec.Struct, frozen=True):
    """The rates of one subject, fastest first, and the ways that gave none."""

    rates: tuple[Rate, ...]
    failed: tuple[NoRate, ...] = ()

    @property
    def best(self) -> Rate | None:
        return self.rates[0] if self.rates else None


def ways(*, device: str, cores: int, threads: int, max_batch: int) -> list[Way]:
    """What to try. On a CPU: one caller with the engine's threads, and as many callers with one thread
    each (or the asked-for number) as fill the cores; batches the second way."""
    if device_kind(device) == "cpu":
        side_by_side = Way(max(1, cores // max(1, threads)), threads or 1, 1)
    else:
        side_by_side = Way(_ACCELERATOR_CALLERS, threads, 1)
    found = [Way(1, threads, 1)]
    if side_by_side.callers > 1:
        found.append(side_by_side)
    batched = found[-1]
    return found + [Way(batched.callers, batched.threads, b) for b in BATCHES if b <= max_batch]


def accepts_batches(bundle: Bundle, opened: OpenSubject) -> int:
    """The largest batch this subject takes in one piece, and that `run` makes; 0 when it computes row by row,
    or its rows were found to interact."""
    candidate = opened.subject.candidate
    if candidate.static_shapes:
        return 0
    if opened.subject.source is None:
        variant = bundle.manifest.variant(candidate.variant)
        known = [
            m.batching
            for m in variant.measured
            if (m.runtime, m.device) == (candidate.runtime, candidate.device)
        ]
        if variant.batch or any(b and b.max_batch <= 1 for b in (variant.batching, *known)):
            return 0
    return bundle.manifest.interface.max_batch


def offline(
    bundle: Bundle,
    opened: Sequence[OpenSubject],
    requests: Sequence[Tensors],
    latencies_ms: Mapping[str, float],
    *,
    cores: int,
    threads: int,
    seconds: float,
    progress: Callable[[float], None] | None = None,
) -> tuple[dict[str, Offline], list[Skipped]]:
    """Measure the subjects of `latencies_ms` (p50 by key), `seconds` each in all. Results by key; one
    whose device was lost meanwhile is skipped."""
    plans = {
        o.subject.key: _Plan(bundle, o, cores, threads, latencies_ms[o.subject.key], seconds)
        for o in opened
        if o.subject.key in latencies_ms
    }
    try:
        for turn in range(ROUNDS):
            for done, plan in enumerate(plans.values()):
                if progress is not None:
                    progress((turn + done / len(plans)) / ROUNDS)
                plan.measure_round(requests)
        lost = [plan.lost for plan in plans.values() if plan.lost is not None]
        return {key: p.result() for key, p in plans.items() if p.lost is None}, lost
    finally:
        for plan in plans.values():
            plan.close()


class _Plan:
    """The ways of one subject, with the sessions they need beyond the given one; owns those."""

    def __init__(
        self,
        bundle: Bundle,
        opened: OpenSubject,
        cores: int,
        threads: int,
        latency_ms: float,
        seconds: float,
    ) -> None:
        self._bundle = bundle
        self._opened = opened
        self._sessions: dict[tuple[int, int], Session] = {(1, threads): opened.session}
        self._slices: dict[Way, list[float]] = {}
        self._failed: list[NoRate] = []
        self.lost: Skipped | None = None
        planned = ways(
            device=opened.subject.candidate.device,
            cores=cores,
            threads=threads,
            max_batch=accepts_batches(bundle, opened),
        )
        self._slice_s = seconds / (ROUNDS * len(planned))
        for way in planned:
            # A slice has two calls at least. Callers share the cores, so a call takes that much longer.
            expected_s = 2 * ROUNDS * way.batch * way.callers * latency_ms / 1000
            if way.batch > 1 and expected_s > 2 * seconds:
                self._failed.append(NoRate(way, "slow", f"it would take about {expected_s:.0f} s"))
            else:
                self._slices[way] = []

    def measure_round(self, requests: Sequence[Tensors]) -> None:
        for way in list(self._slices):
            try:
                session = self._session(way, requests)
                batches = batches_of(requests, way.batch)
                calls = calls_per_second(session.run, batches, way.callers, self._slice_s)
            except DeviceLost as error:
                self.lost = skipped_because(self._opened.subject, "run", error)
                self._slices.clear()
                return
            except EdgeServeError as error:
                del self._slices[way]
                self._failed.append(NoRate(way, "failed", str(error)))
            else:
                self._slices[way].append(calls * way.batch)

    def result(self) -> Offline:
        rates = [
            Rate(way, float(np.median(values)), tuple(values))
            for way, values in self._slices.items()
        ]
        rates.sort(key=lambda r: -r.samples_per_s)
        return Offline(tuple(rates), tuple(self._failed))

    def close(self) -> None:
        for session in self._sessions.values():
            if session is not self._opened.session:
                session.close()

    def _session(self, way: Way, requests: Sequence[Tensors]) -> Session:
        wanted = (way.callers, way.threads)
        if wanted not in self._sessions:
            session = self._opened.subject.open(
                self._bundle, threads=way.threads, instances=way.callers
            )
            self._sessions[wanted] = session
            for _ in range(_FIRST_CALLS):
                session.run(requests[0])
            settle(session)
        session = self._sessions[wanted]
        if session.concurrency < way.callers:
            raise NotMeasured(f"the session runs {session.concurrency} at a time")
        return session


def batches_of(requests: Sequence[Tensors], size: int) -> list[Tensors]:
    """The requests joined to batches of `size`, each starting with another request."""
    if size == 1:
        return list(requests)
    count = len(requests)
    return [join_batches([requests[(s + i) % count] for i in range(size)]) for s in range(count)]


def calls_per_second(
    run: Callable[[Tensors], object], batches: Sequence[Tensors], callers: int, seconds: float
) -> float:
    """Call from `callers` threads for `seconds`, at least once each, after one uncounted call each.

    All calls over the time until the last has ended, so that nothing is overstated.
    """
    ready = threading.Barrier(callers)

    def call(offset: int) -> tuple[int, float, float]:
        try:
            run(batches[offset % len(batches)])
        except BaseException:
            ready.abort()  # or the others would wait for this one
            raise
        ready.wait()
        began, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - began < seconds:
            run(batches[(offset + calls) % len(batches)])
            calls += 1
        return calls, began, time.perf_counter()

    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(call, i) for i in range(callers)]
    errors = [e for f in futures if (e := f.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    ended = [f.result() for f in futures]
    first, last = min(began for _, began, _ in ended), max(end for _, _, end in ended)
    return sum(calls for calls, _, _ in ended) / (last - first)
