"""The engine of one model: a thread for each instance, which runs what queued while it was busy as one batch.

Unless a delay is set, no timer holds a request back: one that finds a free instance runs at once and alone.
Models measured to take less time than a hop to another thread run on the event loop itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from edgeserve.bundle import Candidate
from edgeserve.chain import Chain, Detour, Detoured
from edgeserve.errors import EdgeServeError, InferenceFailed
from edgeserve.serve.engine.mailbox import Mailbox
from edgeserve.serve.engine.queue import BatchPolicy, RequestQueue
from edgeserve.serve.engine.request import (
    BatchTimes,
    Done,
    Outcome,
    Pending,
    QueueFull,
    ShuttingDown,
)
from edgeserve.serve.engine.retry_threads import Aside
from edgeserve.serve.engine.scheduling import Turns
from edgeserve.serve.engine.settings import EngineSettings, set_clock
from edgeserve.serve.engine.warm_up import warm_up
from edgeserve.tensors import Tensors, join_batches, split_batches

log = logging.getLogger(__name__)

# Returned by `submit` for a request that is already answered.
ANSWERED: Final = Pending({}, 0, lambda result: None, 0.0)
ANSWERED.settled = True
_NOT_QUEUED: Final = [0.0]


class Inseparable(Exception):
    """The answers of a batch are not those of its requests: each must be run by itself."""


class Engine:
    """Owns its chain, its instances' threads, and those for requests that another device has to answer; lives on
    one event loop. May be made on any thread.

    Requests share batches only where the chain knows that its candidate keeps them apart. `on_batch` is told
    of every batch that ran, `on_unbatched` of a candidate whose batches were found to mix requests, and why;
    both on the loop.
    """

    def __init__(
        self,
        chain: Chain,
        settings: EngineSettings,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[BatchTimes], None] | None = None,
        turns: Turns | None = None,
        on_unbatched: Callable[[Candidate, str], None] | None = None,
    ) -> None:
        self.chain = chain
        self.settings = settings
        self.pending = 0
        self._loop = loop
        self._on_batch = on_batch or (lambda batch: None)
        self._on_unbatched = on_unbatched or (lambda candidate, reason: None)
        self._line = (turns or Turns(settings.instances)).line(settings.weight)
        self._closing = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        warmed = warm_up(chain, settings)
        self.inline, self.single_s = warmed.inline, warmed.single_s
        self._worth, self._small = warmed.max_batch, warmed.small
        self._queue = RequestQueue(self._policy(), settings.priority_levels, delays=settings.delays)
        chain.listen(self._stepped)
        # Requests of the levels whose number is bounded apart.
        self._apart = {priority - 1: 0 for priority in settings.apart}
        self._mailbox = None if self.inline else Mailbox(loop)
        self._aside = Aside()
        self._threads = [
            threading.Thread(target=self._work, name=f"edgeserve-instance-{i}", daemon=True)
            for i in range(0 if self.inline else settings.instances)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def closing(self) -> bool:
        """Whether it refuses new requests."""
        return self._closing

    @property
    def max_batch(self) -> int:
        """The most rows that requests share now; 1: each is run by itself."""
        return max(1, min(self._worth, self.chain.batching.max_batch))

    @property
    def batching(self) -> str:
        """How requests share batches now, in words with the reason."""
        allowed = self.chain.batching
        if self.max_batch > 1:
            return f"batches up to {self.max_batch}"
        if self.inline:
            return "one at a time: a call takes less than waiting for another"
        if not self.settings.batching:
            return "one at a time: batching is turned off"
        if allowed.max_batch <= 1:
            return f"one at a time: {allowed.reason}"
        if self.settings.max_batch == 1 or self.chain.interface.max_batch <= 1:
            return "one at a time: batches are limited to one row"
        return "one at a time: batches do not pay here"

    def _policy(self) -> BatchPolicy:
        most = self.max_batch
        return BatchPolicy(
            most,
            tuple(sorted(p for p in self.settings.preferred_batches if p <= most)),
            self.settings.batch_delay_s if most > 1 else 0.0,
            self._small,
        )

    def _stepped(self) -> None:
        """Told by the chain, on any thread: another candidate may share other batches."""
        self._queue.policy = self._policy()

    def submit(
        self, inputs: Tensors, rows: int, timeout_s: float | None, done: Done, priority: int = 0
    ) -> Pending:
        """Queue a checked request; `done` gets its Outcome or error, on the loop, once.

        Raises QueueFull, ShuttingDown.
        """
        if self.inline and not self._closing and (timeout_s is None or timeout_s >= 0):
            self._run_inline(inputs, rows, done)
            return ANSWERED
        request = Pending(inputs, rows, done, time.perf_counter())
        settings = self.settings
        if timeout_s is not None or settings.timeout_s or settings.levels:
            set_clock(request, settings, timeout_s, priority, self._loop)
            if request.settled:
                return request
        try:
            self.take(request, priority)
        except EdgeServeError:
            if request.timer is not None:
                request.timer.cancel()
            raise
        return request

    def take(self, request: Pending, priority: int) -> None:
        """Have a request that waits elsewhere run here. Raises QueueFull, ShuttingDown."""
        if self._closing:
            raise ShuttingDown("the server is shutting down", hint="send it to another server")
        if self.inline:
            self._run_inline(request.inputs, request.rows, request.settle)
            return
        settings = self.settings
        if settings.priority_levels > 1:
            request.level = settings.known(priority) - 1
        if self._apart:
            self._enter_apart(request.level)
        elif self.pending >= settings.queue:
            self._make_room(request.level, self.pending)
        if self._worth > 1:
            request.signature = tuple((n, a.shape[1:]) for n, a in request.inputs.items())
        request.holder = self
        self.pending += 1
        self._idle.clear()
        self._queue.put(request)

    def _enter_apart(self, level: int) -> None:
        """As `take` where some levels are counted apart. Raises QueueFull."""
        held = self._apart.get(level)
        if held is None:
            held = self.pending - sum(self._apart.values())
            if held >= self.settings.queue:
                self._make_room(level, held)
            return
        if held >= self.settings.apart[level + 1]:
            raise self._full(held)
        self._apart[level] += 1

    def _make_room(self, level: int, held: int) -> None:
        victim = None
        if self.settings.queue_policy == "displace":
            victim = self._queue.least_important(level, self._apart)
        error = self._full(held)
        if victim is None:
            raise error
        victim.displace(error)

    def _full(self, held: int) -> QueueFull:
        error = QueueFull(
            f"queue full: {held} requests queued or running",
            hint="try again later, or raise --queue",
        )
        error.retry_s = held * self.single_s / self.settings.instances
        return error

    def cancel(self, request: Pending) -> None:
        """The client is gone: do not run what has not been started."""
        request.cancel()

    def forget(self, request: Pending) -> None:
        """A request was settled before it was answered."""
        if self._queue.forget(request):
            self._less([request])

    def delay(self, request: Pending) -> None:
        """A request's time is over, and it goes on waiting."""
        self._queue.delay(request)

    async def drain(self, timeout_s: float | None) -> bool:
        """Refuse new requests and wait for those in flight; False when time ran out."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def close(self) -> None:
        """End the threads and close the chain; requests still queued are not answered."""
        self._closing = self._closed = True
        self._queue.close(len(self._threads))
        for thread in self._threads:
            thread.join(timeout=10)
        self._aside.close()
        if self._mailbox is not None:
            self._mailbox.close()
        self.chain.close()

    def _less(self, requests: list[Pending]) -> None:
        self.pending -= len(requests)
        if self._apart:
            for request in requests:
                if request.level in self._apart:
                    self._apart[request.level] -= 1
        if self.pending == 0:
            self._idle.set()

    def _run_inline(self, inputs: Tensors, rows: int, done: Callable[..., object]) -> None:
        began = time.perf_counter()
        try:
            outputs, candidate = self.chain.run(inputs)
        except Exception as error:  # noqa: BLE001 - the request is told
            done(_failure(error))
            return
        elapsed = time.perf_counter() - began
        self._on_batch(BatchTimes(rows, _NOT_QUEUED, 0.0, elapsed, 0.0))
        done(Outcome(outputs, candidate, rows, 0.0, elapsed))

    # Everything below runs on the instances' threads, except _finish.

    def _work(self) -> None:
        while True:
            tokens = self._queue.wait()
            if not tokens:
                return
            # Only cores are shared: calls on other devices do not wait for them.
            line = self._line if self.chain.candidate.device == "cpu" else None
            if line is not None:
                line.enter()
            began = time.perf_counter()
            try:
                batch = self._queue.take(tokens)
                if batch and not self._closed:
                    self._run(batch)
            finally:
                if line is not None:
                    line.leave(time.perf_counter() - began)

    def _run(self, batch: list[Pending]) -> None:
        alive = [r for r in batch if not r.settled]
        result: list[tuple[Pending, Outcome]] | EdgeServeError | None = None
        times: BatchTimes | None = None
        if alive:
            try:
                result, times = self._answers(alive)
            except Detoured as failed:
                for request, detour in zip(alive, failed.detours, strict=True):
                    self._aside.do(partial(self._go_round, request, detour))
                batch = [r for r in batch if r not in alive]
            except Exception as error:  # noqa: BLE001 - the request is told
                if len(alive) > 1:
                    # One request may have spoiled the batch: let each answer for itself.
                    for request in batch:
                        self._run([request])
                    return
                result = _failure(error)
        assert self._mailbox is not None
        self._mailbox.post(self._finish, batch, result, times)

    def _answers(self, alive: list[Pending]) -> tuple[list[tuple[Pending, Outcome]], BatchTimes]:
        began = time.perf_counter()
        if len(alive) == 1:  # most are: nothing to join, nothing to split
            request = alive[0]
            waited = began - request.arrived
            answer = self.chain.attempt(request.inputs)
            if isinstance(answer, Detour):
                raise Detoured([answer])
            outputs, candidate = answer
            elapsed = time.perf_counter() - began
            outcome = Outcome(outputs, candidate, request.rows, waited, elapsed)
            return [(request, outcome)], BatchTimes(request.rows, [waited], 0.0, elapsed, 0.0)
        sizes = [r.rows for r in alive]
        inputs = [r.inputs for r in alive]
        joined = join_batches(inputs)
        ready = time.perf_counter()
        outputs, candidate = self.chain.run_batch(joined, inputs)
        ran = time.perf_counter()
        self._check_rows(outputs, sizes, candidate)
        parts = split_batches(outputs, sizes)
        done = time.perf_counter()
        rows, elapsed = sum(sizes), done - began
        queued = [began - r.arrived for r in alive]
        answers = [
            (r, Outcome(part, candidate, rows, waited, elapsed))
            for r, part, waited in zip(alive, parts, queued, strict=True)
        ]
        return answers, BatchTimes(rows, queued, ready - began, ran - ready, done - ran)

    def _go_round(self, request: Pending, detour: Detour) -> None:
        """Answer a request that failed on what serves, on a thread that nobody waits for."""
        result: list[tuple[Pending, Outcome]] | EdgeServeError | None = None
        times: BatchTimes | None = None
        began = time.perf_counter()
        waited = began - request.arrived
        if not request.settled:
            try:
                outputs, candidate = detour.answer()
            except Exception as error:  # noqa: BLE001 - the request is told
                result = _failure(error)
            else:
                elapsed = time.perf_counter() - began
                result = [(request, Outcome(outputs, candidate, request.rows, waited, elapsed))]
                times = BatchTimes(request.rows, [waited], 0.0, elapsed, 0.0)
        assert self._mailbox is not None
        self._mailbox.post(self._finish, [request], result, times)

    def _check_rows(self, outputs: Tensors, sizes: list[int], candidate: Candidate) -> None:
        """Raise Inseparable unless these are the answers of all requests one behind the other: as many rows as
        went in, of a candidate that keeps rows apart. Another one may have taken over meanwhile."""
        rows = sum(sizes)
        for name, array in outputs.items():
            found = len(array) if array.ndim else 0
            if found != rows:
                reason = f"rows interact ('{name}' had {found} rows where {rows} went in)"
                self.chain.stop_batching(candidate, reason)
                log.warning(
                    "%s: %s; its requests are run one at a time from now on",
                    candidate.label,
                    reason,
                )
                self._loop.call_soon_threadsafe(self._on_unbatched, candidate, reason)
                raise Inseparable(reason)
        if rows > self.chain.batching_of(candidate).max_batch:
            raise Inseparable(f"{candidate.label} takes requests one at a time")

    def _finish(
        self,
        batch: list[Pending],
        result: list[tuple[Pending, Outcome]] | EdgeServeError | None,
        times: BatchTimes | None,
    ) -> None:
        if times is not None:
            self._on_batch(times)
        if isinstance(result, list):
            for request, outcome in result:
                request.settle(outcome)
        elif result is not None:
            for request in batch:
                request.settle(result)
        self._less(batch)


def _failure(error: Exception) -> EdgeServeError:
    """What a request is told of an exception; the log has the traceback of one that nobody foresaw."""
    if isinstance(error, EdgeServeError):
        return error
    log.error("the engine failed", exc_info=error)
    return InferenceFailed("the engine failed", cause=f"{type(error).__name__}: {error}")
