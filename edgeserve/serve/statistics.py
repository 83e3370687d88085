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

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds * count

    def read(self) -> Duration:
        return Duration(self.count, int(self.seconds * _NS))


class Recorder:
    """Counts for one model. The event loop alone writes and reads."""

    __slots__ = (
        "_batches", "_executions", "_failed", "_hits", "_infer", "_inferences", "_input", "_last",
        "_misses", "_output", "_queue", "_success",
    )  # fmt: skip

    def __init__(self) -> None:
        self._success, self._failed, self._queue = _Sum(), _Sum(), _Sum()
        self._input, self._infer, self._output = _Sum(), _Sum(), _Sum()
        self._hits, self._misses = _Sum(), _Sum()
        self._inferences = self._executions = 0
        self._last = 0.0
        self._batches: dict[int, tuple[_Sum, _Sum, _Sum]] = {}

    def batch(self, batch: BatchTimes) -> None:
        """A batch ran and all its requests were answered."""
        requests = len(batch.queue_s)
        compute = batch.compute_s
        for waited in batch.queue_s:
            self._queue.add(waited)
            self._success.add(waited + compute)
        self._inferences += batch.rows
        self._executions += 1
        self._last = time.time()
        sums = self._batches.get(batch.rows)
        if sums is None:
            sums = self._batches[batch.rows] = (_Sum(), _Sum(), _Sum())
        times = (batch.input_s, batch.infer_s, batch.output_s)
        for own, all_sizes, seconds in zip(
            sums, (self._input, self._infer, self._output), times, strict=True
        ):
            own.add(seconds)
            all_sizes.add(seconds, requests)

    def failed(self, seconds: float) -> None:
        self._failed.add(seconds)

    def cache_hit(self, seconds: float) -> None:
        """A request was answered from the cache; that took `seconds`."""
        self._hits.add(seconds)
        self._success.add(seconds)
        self._last = time.time()

    def cache_miss(self, seconds: float) -> None:
        self._misses.add(seconds)

    def read(self, name: str, version: str, memory: tuple[MemoryUsage, ...]) -> ModelStatistics:
        return ModelStatistics(
            name=name,
            version=version,
            last_inference=int(self._last * 1000),
            inference_count=self._inferences,
            execution_count=self._executions,
            inference_stats=InferenceStatistics(
                success=self._success.read(),
                fail=self._failed.read(),
                queue=self._queue.read(),
                compute_input=self._input.read(),
                compute_infer=self._infer.read(),
                compute_output=self._output.read(),
                cache_hit=self._hits.read(),
                cache_miss=self._misses.read(),
            ),
            batch_stats=tuple(
                BatchStatistics(rows, *(s.read() for s in sums))
                for rows, sums in sorted(self._batches.items())
            ),
            memory_usage=memory,
        )
