"""What a model has done since it was loaded, in the words of Triton's statistics extension.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md. The structs encode to that
document's JSON; times are nanoseconds, `last_inference` is milliseconds since the epoch.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from edgeserve.serve.engine import BatchTimes

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


class _Sum:
    """A Duration that grows, in seconds."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def read(self) -> Duration:
        return _duration(self.count, self.seconds)


class _Size:
    """The batches of one size: seconds as they passed, and times the requests that waited for them."""

    __slots__ = (
        "batches", "infer", "infer_all", "input", "input_all", "output", "output_all", "requests",
    )  # fmt: skip

    def __init__(self) -> None:
        self.batches = self.requests = 0
        self.input = self.infer = self.output = 0.0
        self.input_all = self.infer_all = self.output_all = 0.0

    def read(self, rows: int) -> BatchStatistics:
        durations = (_duration(self.batches, s) for s in (self.input, self.infer, self.output))
        return BatchStatistics(rows, *durations)


class Recorder:
    """Counts for one model. The event loop alone writes and reads; each request writes, so that what can
    be summed when it is read is summed then."""

    __slots__ = ("_failed", "_hits", "_last", "_misses", "_queued", "_sizes")

    def __init__(self) -> None:
        self._failed, self._hits, self._misses = _Sum(), _Sum(), _Sum()
        self._queued = self._last = 0.0
        self._sizes: dict[int, _Size] = {}

    def batch(self, batch: BatchTimes) -> None:
        """A batch ran and all its requests were answered."""
        size = self._sizes.get(batch.rows)
        if size is None:
            size = self._sizes[batch.rows] = _Size()
        requests = len(batch.queue_s)
        size.batches += 1
        size.requests += requests
        size.input += batch.input_s
        size.infer += batch.infer_s
        size.output += batch.output_s
        size.input_all += batch.input_s * requests
        size.infer_all += batch.infer_s * requests
        size.output_all += batch.output_s * requests
        self._queued += sum(batch.queue_s)
        self._last = time.time()

    def failed(self, seconds: float) -> None:
        self._failed.add(seconds)

    def cache_hit(self, seconds: float) -> None:
        """A request was answered from the cache; that took `seconds`."""
        self._hits.add(seconds)
        self._last = time.time()

    def cache_miss(self, seconds: float) -> None:
        self._misses.add(seconds)

    def read(self, name: str, version: str, memory: tuple[MemoryUsage, ...]) -> ModelStatistics:
        sizes = self._sizes.values()
        requests = sum(s.requests for s in sizes)
        compute = [
            sum(s.input_all for s in sizes),
            sum(s.infer_all for s in sizes),
            sum(s.output_all for s in sizes),
        ]
        answered = self._queued + sum(compute) + self._hits.seconds
        return ModelStatistics(
            name=name,
            version=version,
            last_inference=int(self._last * 1000),
            inference_count=sum(rows * s.batches for rows, s in self._sizes.items()),
            execution_count=sum(s.batches for s in sizes),
            inference_stats=InferenceStatistics(
                success=_duration(requests + self._hits.count, answered),
                fail=self._failed.read(),
                queue=_duration(requests, self._queued),
                compute_input=_duration(requests, compute[0]),
                compute_infer=_duration(requests, compute[1]),
                compute_output=_duration(requests, compute[2]),
                cache_hit=self._hits.read(),
                cache_miss=self._misses.read(),
            ),
            batch_stats=tuple(size.read(rows) for rows, size in sorted(self._sizes.items())),
            memory_usage=memory,
        )


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count, int(seconds * _NS))
