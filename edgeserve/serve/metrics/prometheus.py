"""What was recorded, as Prometheus metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

import psutil  # noqa: TID253 - only the server imports this module
from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from edgeserve.serve.metrics.recorder import Histogram, ModelRecorder, Recorder
from edgeserve.serve.metrics.server_counts import MEMORY, REQUEST_TIME
from edgeserve.serve.process.log_writer import DROPPED, dropped_lines

_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
_MODEL: Final = ("model", "version")
# prometheus_client has no counters whose names do not end in _total.
_COUNTERS: Final = re.compile(rb"# TYPE (nv_\w+|:tensorflow:\S+) untyped")


class ServerMetrics(Collector):
    """All metrics of one process, rendered when scraped; `others` collect beside what the recorder has. Everything that
    is known at the start is there from the start, so that a scrape shows zeros, not gaps."""

    def __init__(
        self, recorder: Recorder, in_flight: Callable[[], int] = lambda: 0, *others: Collector
    ) -> None:
        self._recorder = recorder
        self._in_flight = in_flight
        self._others = others
        self._process = psutil.Process()

    def render(self) -> bytes:
        """As Prometheus text."""
        return rendered(self)

    def memory_bytes(self) -> int:
        """Resident memory of this process."""
        return int(self._process.memory_info().rss)

    def collect(self) -> Iterable[Metric]:
        models = self._recorder.models()
        for model in models:
            model.catch_up()
        yield _counter(
            "edgeserve_requests", "Inference requests answered", models, lambda m: m.answered
        )
        yield _failures(models)
        yield _histogram("edgeserve_batch_rows", "Rows a batch", models, _rows)
        yield _histogram(
            "edgeserve_queue_seconds", "Time a request waited", models, lambda m: m.queue
        )
        yield _histogram(
            "edgeserve_compute_seconds", "Time a batch ran", models, lambda m: m.compute
        )
        yield _histogram(REQUEST_TIME, "Time a request waited and ran", models, lambda m: m.request)
        yield _pending(models)
        yield _counter(
            "edgeserve_cache_hits", "Requests answered from the cache", models,
            lambda m: m.cache_hits,
        )  # fmt: skip
        yield _counter(
            "edgeserve_cache_misses", "Requests that the cache had no answer for", models,
            lambda m: m.cache_misses,
        )  # fmt: skip
        yield _candidates(models)
        for tally in self._recorder.tallies():
            family = CounterMetricFamily(tally.name, tally.what, labels=tally.labels)
            for labels, count, created in tally.read():
                family.add_metric(labels, count, created=created)
            yield family
        yield CounterMetricFamily("edgeserve_log_lines_dropped", DROPPED, dropped_lines())
        for name, what, value in (
            ("edgeserve_connections", "Open client connections", self._recorder.connections),
            (
                "edgeserve_in_flight_requests",
                "Requests being handled, of all models",
                self._in_flight(),
            ),
            (
                MEMORY,
                "Resident memory",
                self.memory_bytes(),
            ),
        ):
            yield GaugeMetricFamily(name, what, value)
        for other in self._others:
            yield from other.collect()


def rendered(content: Collector) -> bytes:
    """As Prometheus text."""
    return _COUNTERS.sub(rb"# TYPE \1 counter", generate_latest(content))


def _counter(
    name: str, what: str, models: Sequence[ModelRecorder], count: Callable[[ModelRecorder], int]
) -> Metric:
    family = CounterMetricFamily(name, what, labels=_MODEL)
    for model in models:
        family.add_metric((model.name, model.version), count(model), created=model.created)
    return family


def _failures(models: Sequence[ModelRecorder]) -> Metric:
    family = CounterMetricFamily(
        "edgeserve_request_failures", "Inference requests that failed", labels=(*_MODEL, "reason")
    )
    for model in models:
        for reason, count in model.failures.items():
            labels = (model.name, model.version, reason)
            family.add_metric(labels, count, created=model.created)
    return family


def _rows(model: ModelRecorder) -> Histogram:
    found = Histogram(_BATCHES)
    for rows, size in model.sizes.items():
        found.observe(rows, size.batches)
    return found


def _histogram(
    name: str,
    what: str,
    models: Sequence[ModelRecorder],
    read: Callable[[ModelRecorder], Histogram],
) -> Metric:
    family = HistogramMetricFamily(name, what, labels=_MODEL)
    for model in models:
        histogram = read(model)
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric((model.name, model.version), buckets, histogram.sum)
    return family


def _pending(models: Sequence[ModelRecorder]) -> Metric:
    family = GaugeMetricFamily("edgeserve_pending_requests", "Queued or running", labels=_MODEL)
    for model in models:
        if model.pending is not None:
            family.add_metric((model.name, model.version), model.pending())
    return family


def _candidates(models: Sequence[ModelRecorder]) -> Metric:
    family = GaugeMetricFamily(
        "edgeserve_candidate_info",
        "1 for the candidate that serves",
        labels=(*_MODEL, "variant", "runtime", "device"),
    )
    for model in models:
        for candidate, serves in model.candidates.items():
            family.add_metric((model.name, model.version, *candidate), float(serves))
    return family
