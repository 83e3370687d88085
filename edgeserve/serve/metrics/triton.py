"""The metrics that Triton has, by its names, for dashboards and autoscalers made for it.

Source: triton-inference-server/server, docs/user_guide/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import psutil  # noqa: TID253 - only the server imports this module
from prometheus_client import Metric
from prometheus_client.registry import Collector

from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.metrics.statistics import Duration, ModelStatistics, statistics_of

# Triton's reasons, of ours.
_REASONS: Final = {
    "REJECTED": ("in_flight", "queue_full", "timeout", "draining", "unavailable"),
    "CANCELED": ("canceled",),
    "BACKEND": ("engine",),
    "OTHER": ("invalid",),
}
_Counter = tuple[str, str, Callable[[ModelStatistics], int]]


def _times(name: str, what: str, which: Callable[[ModelStatistics], Duration]) -> _Counter:
    """A counter of how long something took in all."""
    return (
        f"nv_inference_{name}_duration_us",
        f"Cumulative {what} duration in microseconds",
        lambda s: which(s).ns // 1000,
    )


_COUNTERS: Final[tuple[_Counter, ...]] = (
    (
        "nv_inference_request_success",
        "Number of successful inference requests",
        lambda s: s.inference_stats.success.count,
    ),
    ("nv_inference_count", "Number of inferences performed", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Number of model executions", lambda s: s.execution_count),
    _times("request", "inference request", lambda s: s.inference_stats.success),
    _times("queue", "inference queuing", lambda s: s.inference_stats.queue),
    _times("compute_input", "compute input", lambda s: s.inference_stats.compute_input),
    _times("compute_infer", "compute inference", lambda s: s.inference_stats.compute_infer),
    _times("compute_output", "compute output", lambda s: s.inference_stats.compute_output),
    (
        "nv_cache_num_hits_per_model",
        "Number of cache hits per model",
        lambda s: s.inference_stats.cache_hit.count,
    ),
    (
        "nv_cache_num_misses_per_model",
        "Number of cache misses per model",
        lambda s: s.inference_stats.cache_miss.count,
    ),
    (
        "nv_cache_hit_duration_per_model",
        "Total cache hit duration per model, in microseconds",
        lambda s: s.inference_stats.cache_hit.ns // 1000,
    ),
)


class TritonMetrics(Collector):
    """Models that are loaded no more keep what they have counted; `pending` has the requests that wait or run, of
    those that are."""

    def __init__(
        self, recorder: Recorder, pending: Callable[[], Mapping[tuple[str, str], int]]
    ) -> None:
        self._recorder = recorder
        self._pending = pending

    def collect(self) -> Iterable[Metric]:
        models = [(m, {"model": m.name, "version": m.version}) for m in self._recorder.models()]
        statistics = [(statistics_of(model), labels) for model, labels in models]
        for name, what, read in _COUNTERS:
            # Triton's counters do not end in _total, which a counter's must: made one when rendered.
            metric = Metric(name, what, "unknown")
            for one, labels in statistics:
                metric.add_sample(name, labels, read(one))
            yield metric
        failure = Metric("nv_inference_request_failure", "Number of failed requests", "unknown")
        for recorder, labels in models:
            for reason, ours in _REASONS.items():
                count = sum(recorder.failures[r] for r in ours)
                failure.add_sample(failure.name, {**labels, "reason": reason}, count)
        yield failure
        pending = Metric(
            "nv_inference_pending_request_count",
            "Instantaneous number of pending requests",
            "gauge",
        )
        for (name, version), count in self._pending().items():
            pending.add_sample(pending.name, {"model": name, "version": version}, count)
        yield pending
        memory = psutil.virtual_memory()
        for name, value in (
            ("nv_cpu_memory_total_bytes", memory.total),
            ("nv_cpu_memory_used_bytes", memory.used),
        ):
            metric = Metric(name, "System memory, in bytes", "gauge")
            metric.add_sample(name, {}, value)
            yield metric
