"""What a model has done since the server started, in the words of Triton's statistics extension.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md. The structs encode to that
document's JSON; times are nanoseconds, `last_inference` is milliseconds since the epoch.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from edgeserve.serve.engine import UNCOUNTED, BatchTimes

_NS: Final = 1_000_000_000


class Duration(msgspec.Struct, frozen=True):
    """How often something happened, and how long it took in total."""

    count: int = 0
    ns: int = 0


class InferenceStatistics(msgspec.Struct, frozen=True):
    """`success`, `fail` and `queue` count requests; the `compute_` ones count requests, too, each with
    the whole time of its batch."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(msgspec.Struct, frozen=True):
    """The batches of one size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class MemoryUsage(msgspec.Struct, frozen=True):
    """What a model holds of one memory."""

    type: str
    id: int
    byte_size: int


class ModelStatistics(msgspec.Struct, frozen=True):
    """One entry of `model_stats`."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: tuple[BatchStatistics, ...] = ()
    memory_usage: tuple[MemoryUsage, ...] = ()
    response_stats: dict[str, str] = {}


class _Size:
    """The batches of one size, in seconds; `more_` is what counts again for each further request of a
    batch, for the statistics that count requests."""

    __slots__ = (
        "batches", "infer", "input", "more_infer", "more_input", "more_output", "output", "queue",
        "requests",
    )  # fmt: skip

    def __init__(self) -> None:
        self.batches = self.requests = 0
        self.queue = self.input = self.infer = self.output = 0.0
        self.more_input = self.more_infer = self.more_output = 0.0


class Recorder:
    """Counts for one model. The event loop alone writes and reads."""

    __slots__ = (
        "_failed", "_failed_s", "_hits", "_hits_s", "_last", "_misses", "_misses_s", "_ran", "_sizes",
    )  # fmt: skip

    def __init__(self) -> None:
        self._failed = self._hits = self._misses = 0
        self._failed_s = self._hits_s = self._misses_s = 0.0
        self._last = 0.0
        self._sizes: dict[int, _Size] = {}
        self._ran: list[BatchTimes] = []  # and not counted yet

    def batch(self, batch: BatchTimes) -> None:
        """A batch ran and all its requests were answered."""
        self._ran.append(batch)
        self._last = time.time()
        if len(self._ran) >= UNCOUNTED:
            self._count()

    def _count(self) -> None:
        for batch in self._ran:
            self._add(batch)
        self._ran.clear()

    def _add(self, batch: BatchTimes) -> None:
        size = self._sizes.get(batch.rows)
        if size is None:
            size = self._sizes[batch.rows] = _Size()
        size.batches += 1
        size.input += batch.input_s
        size.infer += batch.infer_s
        size.output += batch.output_s
        requests = len(batch.queue_s)
        size.requests += requests
        if requests == 1:
            size.queue += batch.queue_s[0]
        else:
            size.queue += sum(batch.queue_s)
            size.more_input += (requests - 1) * batch.input_s
            size.more_infer += (requests - 1) * batch.infer_s
            size.more_output += (requests - 1) * batch.output_s

    def failed(self, seconds: float) -> None:
        self._failed += 1
        self._failed_s += seconds

    def cache_hit(self, seconds: float) -> None:
        """A request was answered from the cache; that took `seconds`."""
        self._hits += 1
        self._hits_s += seconds
        self._last = time.time()

    def cache_miss(self, seconds: float) -> None:
        self._misses += 1
        self._misses_s += seconds

    def read(
        self, name: str, version: str, memory: tuple[MemoryUsage, ...], answered: int
    ) -> ModelStatistics:
        """`answered` is how many requests were: of those that ran some had nobody to be answered to."""
        self._count()
        sizes = sorted(self._sizes.items())
        requests = sum(s.requests for _, s in sizes)
        queue = sum(s.queue for _, s in sizes)
        entering = sum(s.input + s.more_input for _, s in sizes)
        inferring = sum(s.infer + s.more_infer for _, s in sizes)
        leaving = sum(s.output + s.more_output for _, s in sizes)
        total = queue + entering + inferring + leaving + self._hits_s
        return ModelStatistics(
            name=name,
            version=version,
            last_inference=int(self._last * 1000),
            inference_count=sum(rows * s.batches for rows, s in sizes),
            execution_count=sum(s.batches for _, s in sizes),
            inference_stats=InferenceStatistics(
                success=_duration(answered, total),
                fail=_duration(self._failed, self._failed_s),
                queue=_duration(requests, queue),
                compute_input=_duration(requests, entering),
                compute_infer=_duration(requests, inferring),
                compute_output=_duration(requests, leaving),
                cache_hit=_duration(self._hits, self._hits_s),
                cache_miss=_duration(self._misses, self._misses_s),
            ),
            batch_stats=tuple(
                BatchStatistics(
                    rows,
                    _duration(s.batches, s.input),
                    _duration(s.batches, s.infer),
                    _duration(s.batches, s.output),
                )
                for rows, s in sizes
            ),
            memory_usage=memory,
        )


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count, int(seconds * _NS))
