"""The engine of one model: worker threads that run what has queued while they were busy as one batch.

No timer delays anybody: a request that finds a free worker runs at once and alone. Models measured to
take less than a thread hop costs are run on the event loop itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from edgeserve.chain import Chain, golden_batches
from edgeserve.errors import EdgeServeError, InferenceFailed
from edgeserve.serve.engine.request import (
    DeadlineExceeded,
    Done,
    Outcome,
    Pending,
    QueueFull,
    ShuttingDown,
)
from edgeserve.tensors import Tensors, join_batches, split_batches

log = logging.getLogger(__name__)

# A hop to a worker thread and back costs about that (docs/run.md): quicker models run on the loop.
INLINE_S: Final = 50e-6
_WARM_UP_RUNS: Final = 10


class EngineSettings(msgspec.Struct, frozen=True):
    """`queue` bounds requests that wait or run; `timeout_s` is the deadline of one that names none (0:
    none); `instances` is the number of workers; `batching` False runs every request alone."""

    queue: int = 1024
    timeout_s: float = 0.0
    instances: int = 1
    batching: bool = True


class Engine:
    """Owns its chain and its worker threads; lives on one event loop.

    `on_batch(rows, queue_seconds, compute_seconds)` is told of every batch, on the loop.
    """

    def __init__(
        self,
        chain: Chain,
        settings: EngineSettings,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int, list[float], float], None] | None = None,
    ) -> None:
        self.chain = chain
        self.settings = settings
        self.pending = 0
        self._loop = loop
        self._on_batch = on_batch or (lambda rows, queued, computed: None)
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._closing = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._warm_up()
        self._threads = [
            threading.Thread(target=self._work, name=f"edgeserve-worker-{i}", daemon=True)
            for i in range(0 if self.inline else settings.instances)
        ]
        for thread in self._threads:
            thread.start()

    def _warm_up(self) -> None:
        """Run golden samples until times settle; decide about running inline and about batching."""
        interface = self.chain.interface
        requests = golden_batches(interface, self.chain.bundle.golden()[0])
        single = self._fastest(requests[0])
        # Another process, now or after a step up the chain, may keep the loop waiting.
        self.inline = single < INLINE_S and not self.chain.may_wait
        self.max_batch = 1
        if interface.max_batch > 1 and self.settings.batching and not self.inline:
            four = min(4, interface.max_batch)
            joined = {n: np.concatenate([a] * four) for n, a in requests[0].items()}
            # Where a batch of four costs what four requests cost, batching only adds waiting.
            self.max_batch = interface.max_batch if self._fastest(joined) < four * single else 1
        self.single_s = single

    def _fastest(self, inputs: Tensors) -> float:
        times = []
        for _ in range(_WARM_UP_RUNS):
            began = time.perf_counter()
            self.chain.run(inputs)
            times.append(time.perf_counter() - began)
        return float(np.median(times[_WARM_UP_RUNS // 2 :]))

    def submit(self, inputs: Tensors, rows: int, timeout_s: float | None, done: Done) -> Pending:
        """Queue a checked request; `done` gets its Outcome or error, on the loop, once.

        Raises QueueFull, ShuttingDown.
        """
        if self._closing:
            raise ShuttingDown("the server is shutting down", hint="send it to another server")
        if self.pending >= self.settings.queue:
            raise QueueFull(
                f"{self.pending} requests wait or run already",
                hint="try again later, or raise --queue",
            )
        signature = tuple((n, a.shape[1:]) for n, a in inputs.items()) if self.max_batch > 1 else 0
        request = Pending(inputs, rows, signature, done, time.perf_counter())
        if self.inline:
            self._run_inline(request)
            return request
        self.pending += 1
        self._idle.clear()
        limit = self.settings.timeout_s if timeout_s is None else timeout_s
        if limit > 0:
            request.timer = self._loop.call_later(limit, self._expire, request, limit)
        self._queue.put(request)
        return request

    def cancel(self, request: Pending) -> None:
        """The client is gone: do not run what has not been started."""
        request.settled = True
        if request.timer is not None:
            request.timer.cancel()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight; False when time ran out."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def close(self) -> None:
        """End the workers and close the chain; requests still queued are not answered."""
        self._closing = self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=10)
        self.chain.close()

    def _expire(self, request: Pending, limit: float) -> None:
        request.settle(DeadlineExceeded(f"the request was not answered within {limit:g} s"))

    def _run_inline(self, request: Pending) -> None:
        began = time.perf_counter()
        try:
            outputs, candidate = self.chain.run(request.inputs)
        except Exception as error:  # noqa: BLE001 - the request is told
            request.settle(_failure(error))
            return
        elapsed = time.perf_counter() - began
        self._on_batch(request.rows, [0.0], elapsed)
        request.settle(Outcome(outputs, candidate, request.rows, 0.0, elapsed))

    # Everything below runs on worker threads, except _finish.

    def _work(self) -> None:
        held: Pending | None = None
        while True:
            first = held or self._queue.get()
            held = None
            if first is None or self._closed:
                return
            if first.settled:
                self._loop.call_soon_threadsafe(self._finish, [first], None, 0.0, 0.0)
                continue
            batch, held = self._gather(first)
            self._run(batch)

    def _gather(self, first: Pending) -> tuple[list[Pending], Pending | None]:
        """`first` and what has queued behind it, while it fits; the one that did not is held over."""
        batch, rows = [first], first.rows
        while rows < self.max_batch:
            try:
                request = self._queue.get_nowait()
            except queue.Empty:
                break
            if request is None:
                self._queue.put(None)
                break
            if request.settled:
                batch.append(request)  # not run, but accounted for
                continue
            if request.signature != first.signature or rows + request.rows > self.max_batch:
                return batch, request
            batch.append(request)
            rows += request.rows
        return batch, None

    def _run(self, batch: list[Pending]) -> None:
        alive = [r for r in batch if not r.settled]
        began = time.perf_counter()
        result: list[tuple[Pending, Outcome]] | EdgeServeError | None = None
        if alive:
            try:
                result = self._answers(alive, began)
            except Exception as error:  # noqa: BLE001 - the request is told
                if len(alive) > 1:
                    # One request may have spoiled the batch: let each answer for itself.
                    for request in batch:
                        self._run([request])
                    return
                result = _failure(error)
        elapsed = time.perf_counter() - began
        self._loop.call_soon_threadsafe(self._finish, batch, result, began, elapsed)

    def _answers(self, alive: list[Pending], began: float) -> list[tuple[Pending, Outcome]]:
        sizes = [r.rows for r in alive]
        outputs, candidate = self.chain.run(join_batches([r.inputs for r in alive]))
        elapsed = time.perf_counter() - began
        return [
            (r, Outcome(part, candidate, sum(sizes), began - r.arrived, elapsed))
            for r, part in zip(alive, split_batches(outputs, sizes), strict=True)
        ]

    def _finish(
        self,
        batch: list[Pending],
        result: list[tuple[Pending, Outcome]] | EdgeServeError | None,
        began: float,
        elapsed: float,
    ) -> None:
        self.pending -= len(batch)
        if isinstance(result, list):
            rows = sum(r.rows for r, _ in result)
            self._on_batch(rows, [began - r.arrived for r, _ in result], elapsed)
            for request, outcome in result:
                request.settle(outcome)
        elif result is not None:
            for request in batch:
                request.settle(result)
        if self.pending == 0:
            self._idle.set()


def _failure(error: Exception) -> EdgeServeError:
    """What a request is told of an exception; the log has the traceback of one that nobody foresaw."""
    if isinstance(error, EdgeServeError):
        return error
    log.error("the engine failed", exc_info=error)
    return InferenceFailed("the engine failed", cause=f"{type(error).__name__}: {error}")
