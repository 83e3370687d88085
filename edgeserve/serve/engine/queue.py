"""The requests that wait for one model, by priority, and how they are put together into batches."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Final

import msgspec

from edgeserve.serve.engine.request import Pending

# How many requests of other shapes are looked past for one that fits the batch.
_LOOK_PAST: Final = 64


class BatchPolicy(msgspec.Struct, frozen=True):
    """How large batches get, and whether a worker waits for company.

    A batch holds at most `max_batch` rows. With `preferred` sizes, the largest of them that can be filled
    is taken; where none can, at most `small` rows (0: `max_batch`). A worker waits until the oldest
    request has waited `delay_s`, or the smallest preferred size (without one: `max_batch`) is there.
    """

    max_batch: int = 1
    preferred: tuple[int, ...] = ()
    delay_s: float = 0.0
    small: int = 0

    @property
    def enough(self) -> int:
        """Rows for which nobody waits any longer."""
        return min(self.preferred, default=self.max_batch)

    def limit(self, waiting: int) -> int:
        """The most rows of the next batch where `waiting` rows are there."""
        fitting = [size for size in self.preferred if size <= waiting]
        return max(fitting, default=self.small or self.max_batch)


class RequestQueue:
    """Filled by the event loop, emptied by workers.

    Each request brings one token, for which workers wait; there are never fewer tokens than requests.
    Tokens of requests that went along in another's batch, or were forgotten, wake a worker for nothing.
    """

    def __init__(self, policy: BatchPolicy, levels: int = 1, *, delays: bool = False) -> None:
        """Without `delays` no request may be overdue."""
        self.policy = policy
        self._levels: list[deque[Pending]] = [deque() for _ in range(levels)]
        self._overdue: list[deque[Pending]] = [deque() for _ in range(levels if delays else 0)]
        self._order = self._levels
        if delays:
            pairs = zip(self._levels, self._overdue, strict=True)
            self._order = [line for pair in pairs for line in pair]
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._rows = 0  # of requests that wait and are not settled
        self._closed = False

    # The event loop's side

    def put(self, request: Pending) -> None:
        lines = self._overdue if request.overdue else self._levels
        with self._lock:
            lines[request.level].append(request)
            self._rows += request.rows
        self._tokens.put(None)

    def forget(self, request: Pending) -> bool:
        """A request was settled early. False when a worker had started it: then it is reported."""
        with self._lock:
            if request.started:
                return False
            self._rows -= request.rows
        request.inputs = {}
        return True

    def delay(self, request: Pending) -> None:
        """A request that was put here is overdue: it waits behind those of its level that are not."""
        with self._lock:
            if not request.started:
                self._levels[request.level].remove(request)
                self._overdue[request.level].append(request)

    def least_important(self, level: int, spared: Collection[int] = ()) -> Pending | None:
        """The last in line of the requests that wait at the lowest priority below `level`, but for those
        of `spared` levels."""
        with self._lock:
            for line in reversed(self._order):
                for request in reversed(line):
                    if request.level <= level:
                        return None
                    if request.level in spared:
                        break
                    if not request.settled:
                        return request
        return None

    def close(self, workers: int) -> None:
        """Have `take` return None to each of the workers; what waits is not run."""
        self._closed = True
        for _ in range(workers):
            self._tokens.put(None)

    # The workers' side

    def wait(self) -> int:
        """Until there may be something to run, and company has been waited for; the tokens taken.
        0 when the queue was closed."""
        self._tokens.get()
        taken = 1
        while self.policy.delay_s > 0 and not self._closed:
            left = self._patience()
            if left <= 0:
                break
            try:
                self._tokens.get(timeout=left)
            except queue.Empty:
                break
            taken += 1
        return 0 if self._closed else taken

    def take(self, tokens: int) -> list[Pending]:
        """The next batch; empty when nothing waits after all. `tokens` is what `wait` returned."""
        with self._lock:
            batch = self._gather()
            left = any(self._order)
        if left:
            for _ in range(tokens - max(1, len(batch))):
                self._tokens.put(None)  # for those that did not come along
        return batch

    def _patience(self) -> float:
        """Seconds for which the oldest request may still wait for company."""
        with self._lock:
            if self._rows >= self.policy.enough:
                return 0.0
            oldest = [level[0].arrived for level in self._order if level]
        if not oldest:
            return 0.0
        return min(oldest) + self.policy.delay_s - time.perf_counter()

    def _gather(self) -> list[Pending]:
        batch: list[Pending] = []
        rows, limit = 0, self.policy.limit(self._rows)
        for level in self._order:
            passed: list[Pending] = []
            full = False
            while level and len(passed) < _LOOK_PAST:
                request = level[0]
                if request.settled:
                    level.popleft()
                    continue
                if batch and request.signature != batch[0].signature:
                    passed.append(level.popleft())
                    continue
                # The first always goes, whatever its size.
                if batch and rows + request.rows > limit:
                    full = True  # it is next: others do not overtake it
                    break
                level.popleft()
                request.started = True
                batch.append(request)
                rows += request.rows
                if rows >= limit:
                    full = True
                    break
            level.extendleft(reversed(passed))
            if full:
                break
        self._rows -= rows
        return batch
