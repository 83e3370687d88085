"""The metrics that TF Serving has, by its names, for dashboards made for it.

Sources: tensorflow_serving/util/prometheus_exporter.cc, and tensorflow_serving/servables/tensorflow/util.cc for
the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate, zip_longest
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from edgeserve.serve.metrics.prometheus import rendered
from edgeserve.serve.metrics.recorder import FAILURES, REQUEST_SECONDS
from edgeserve.serve.metrics.server_counts import Counts, RequestCounts

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
        requests = self._counts.requests()
        counted: Counter[tuple[str, str]] = Counter()
        for (name, _), found in requests.items():
            counted[name, "OK"] += found.answered
            for reason, count in found.failed.items():
                counted[name, _CODES[reason]] += count
        # TF Serving's counters do not end in _total, which a counter's must: made one when rendered.
        metric = Metric(_COUNT, "The total number of requests.", "unknown")
        for (name, status), count in counted.items():
            metric.add_sample(_COUNT, {"model_name": name, "status": status}, count)
        yield metric
        yield self._latency(requests)

    def _latency(self, requests: Mapping[tuple[str, str], RequestCounts]) -> Metric:
        """Of the versions that are loaded."""
        bounds = [f"{seconds * 1e6:.0f}" for seconds in REQUEST_SECONDS]
        times: dict[str, list[int]] = {}
        total: Counter[str] = Counter()
        for model in self._counts.statistics():
            counts = requests.get((model.name, model.version), RequestCounts()).times
            known = times.setdefault(model.name, [0] * (len(bounds) + 1))
            times[model.name] = [a + b for a, b in zip_longest(known, counts, fillvalue=0)]
            total[model.name] += model.inference_stats.success.ns // 1000
        latency = HistogramMetricFamily(
            _LATENCY, "Distribution of wall time, in microseconds.", labels=("model_name",)
        )
        for name, found in times.items():
            buckets = list(zip((*bounds, "+Inf"), accumulate(found), strict=True))
            latency.add_metric((name,), buckets, total[name])
        return latency
