"""The metrics that TF Serving has, by its names, for dashboards made for it.

Sources: tensorflow_serving/util/prometheus_exporter.cc, and tensorflow_serving/servables/tensorflow/util.cc for
the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client import Metric
from prometheus_client.registry import Collector

from edgeserve.serve.metrics.prometheus import rendered
from edgeserve.serve.metrics.recorder import FAILURES
from edgeserve.serve.metrics.server_counts import Counts

_COUNT: Final = ":tensorflow:serving:request_count"
_LATENCY: Final = ":tensorflow:serving:request_latency"
# Its codes, of our reasons.
_CODES: Final = {
    "invalid": "INVALID_ARGUMENT",
    "engine": "INTERNAL",
    "timeout": "DEADLINE_EXCEEDED",
    "canceled": "CANCELLED",
} | dict.fromkeys(("in_flight", "queue_full", "draining", "unavailable"), "UNAVAILABLE")
assert _CODES.keys() == set(FAILURES)


class TfServingMetrics(Collector):
    """The versions of a model together, as TF Serving has them. Labels come from models that were loaded."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def render(self) -> bytes:
        """As Prometheus text."""
        return rendered(self)

    def collect(self) -> Iterable[Metric]:
        counted: Counter[tuple[str, str]] = Counter()
        for (name, _), requests in self._counts.requests().items():
            counted[name, "OK"] += requests.answered
            for reason, count in requests.failed.items():
                counted[name, _CODES[reason]] += count
        # TF Serving's counters do not end in _total, which a counter's must: made one when rendered.
        metric = Metric(_COUNT, "The total number of requests.", "unknown")
        for (name, status), count in counted.items():
            metric.add_sample(_COUNT, {"model_name": name, "status": status}, count)
        yield metric
        count_of: Counter[str] = Counter()
        sum_of: Counter[str] = Counter()
        for model in self._counts.statistics():
            success = model.inference_stats.success
            count_of[model.name] += success.count
            sum_of[model.name] += success.ns // 1000
        latency = Metric(_LATENCY, "Distribution of wall time, in microseconds.", "histogram")
        for name, count in count_of.items():
            labels = {"model_name": name}
            latency.add_sample(f"{_LATENCY}_bucket", labels | {"le": "+Inf"}, count)
            latency.add_sample(f"{_LATENCY}_sum", labels, sum_of[name])
            latency.add_sample(f"{_LATENCY}_count", labels, count)
        yield latency
