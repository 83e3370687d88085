"""What was recorded of a model, in the words of Triton's statistics extension.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md. The structs encode to that
document's JSON; times are nanoseconds, `last_inference` is milliseconds since the epoch.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.serve.metrics.recorder import ModelRecorder

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


def statistics_of(recorder: ModelRecorder, memory: tuple[MemoryUsage, ...] = ()) -> ModelStatistics:
    """The statistics of one version of a model. Requests that ran may outnumber those answered: some clients left."""
    recorder.catch_up()
    sizes = sorted(recorder.sizes.items())
    requests = sum(s.requests for _, s in sizes)
    queue = sum(s.queue for _, s in sizes)
    entering = sum(s.input + s.more_input for _, s in sizes)
    inferring = sum(s.infer + s.more_infer for _, s in sizes)
    leaving = sum(s.output + s.more_output for _, s in sizes)
    total = queue + entering + inferring + leaving + recorder.cache_hit_s
    return ModelStatistics(
        name=recorder.name,
        version=recorder.version,
        last_inference=int(recorder.last * 1000),
        inference_count=sum(rows * s.batches for rows, s in sizes),
        execution_count=sum(s.batches for _, s in sizes),
        inference_stats=InferenceStatistics(
            success=_duration(recorder.answered, total),
            fail=_duration(sum(recorder.failures.values()), recorder.failed_s),
            queue=_duration(requests, queue),
            compute_input=_duration(requests, entering),
            compute_infer=_duration(requests, inferring),
            compute_output=_duration(requests, leaving),
            cache_hit=_duration(recorder.cache_hits, recorder.cache_hit_s),
            cache_miss=_duration(recorder.cache_misses, recorder.cache_miss_s),
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
