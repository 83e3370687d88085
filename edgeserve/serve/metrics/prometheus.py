"""Prometheus metrics. Labels come only from loaded models, never from what a client sends."""

from __future__ import annotations

import contextlib
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final

import psutil  # noqa: TID253 - only the server imports this module
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from edgeserve.bundle import Candidate
from edgeserve.chain import Replay
from edgeserve.serve.engine import UNCOUNTED, BatchTimes
from edgeserve.serve.engine.flight import InFlight
from edgeserve.serve.log_writer import DROPPED, dropped_lines
from edgeserve.serve.metrics.statistics import Recorder

_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
_SECONDS: Final = (
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
# prometheus_client has no counters whose names do not end in _total.
_COUNTERS: Final = re.compile(rb"# TYPE (nv_\w+) untyped")
FAILURES: Final = (
    "invalid", "engine", "in_flight", "queue_full", "timeout", "draining", "canceled",
    "unavailable",
)  # fmt: skip


class _Histogram:
    """One model's counts. The event loop alone counts, so no lock: prometheus_client's costs four times.
    `catch_up` observes what there is to observe still; to be called before `counts` and `sum` are read."""

    __slots__ = ("_bounds", "catch_up", "counts", "sum")

    def __init__(self, bounds: Sequence[float], catch_up: Callable[[], None]) -> None:
        self._bounds = bounds
        self.catch_up = catch_up
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class _Histograms(Collector):
    """A histogram for each model, rendered when scraped."""

    def __init__(self, name: str, what: str, bounds: Sequence[float]) -> None:
        self._name, self._what, self._bounds = name, what, bounds
        self._models: dict[tuple[str, str], _Histogram] = {}

    def labels(self, model: str, version: str, catch_up: Callable[[], None]) -> _Histogram:
        return self._models.setdefault((model, version), _Histogram(self._bounds, catch_up))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._what, labels=["model", "version"])
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, histogram in list(self._models.items()):
            histogram.catch_up()
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric(labels, buckets, histogram.sum)
        yield family


class _Requests(Collector):
    """The answered requests of each model."""

    def __init__(self, models: Mapping[tuple[str, str], ModelMetrics]) -> None:
        self._models = models

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(
            "edgeserve_requests", "Inference requests answered", labels=["model", "version"]
        )
        for labels, metrics in list(self._models.items()):
            family.add_metric(labels, metrics.answered, created=metrics.created)
        yield family


class _Elsewhere(Collector):
    """A counter without labels that is kept elsewhere."""

    def __init__(self, name: str, what: str, count: Callable[[], int]) -> None:
        self._name, self._what, self._count = name, what, count

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._what, self._count())


class ServerMetrics:
    """One registry; everything is created at start, so that a scrape shows zeros, not gaps."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self.registry.register(_Requests(self._models))
        self._failures = Counter(
            "edgeserve_request_failures",
            "Inference requests that failed",
            ["model", "version", "reason"],
            registry=self.registry,
        )
        self._batch = _Histograms("edgeserve_batch_rows", "Rows a batch", _BATCHES)
        self._queue = _Histograms("edgeserve_queue_seconds", "Time a request waited", _SECONDS)
        self._compute = _Histograms("edgeserve_compute_seconds", "Time a batch ran", _SECONDS)
        for histograms in (self._batch, self._queue, self._compute):
            self.registry.register(histograms)
        self._pending = Gauge(
            "edgeserve_pending_requests",
            "Queued or running",
            ["model", "version"],
            registry=self.registry,
        )
        self._cache_hits = Counter(
            "edgeserve_cache_hits",
            "Requests answered from the cache",
            ["model", "version"],
            registry=self.registry,
        )
        self._cache_misses = Counter(
            "edgeserve_cache_misses",
            "Requests that the cache had no answer for",
            ["model", "version"],
            registry=self.registry,
        )
        self._candidate = Gauge(
            "edgeserve_candidate_info",
            "1 for the candidate that serves",
            ["model", "version", "variant", "runtime", "device"],
            registry=self.registry,
        )
        self._fallback = Counter(
            "edgeserve_fallback",
            "Steps down the chain",
            ["model", "from", "to", "reason"],
            registry=self.registry,
        )
        self._replayed = Counter(
            "edgeserve_request_replayed",
            "Requests that failed on one candidate and were answered by another",
            ["model", "from", "to", "reason"],
            registry=self.registry,
        )
        self._recovered = Counter(
            "edgeserve_recovered",
            "Steps back up the chain",
            ["model", "from", "to"],
            registry=self.registry,
        )
        self._unbatched = Counter(
            "edgeserve_batching_stopped",
            "Candidates whose batches were found to mix requests, which then run one at a time",
            ["model", "version", "candidate"],
            registry=self.registry,
        )
        self._http_refused = Counter(
            "edgeserve_http_refused",
            "Requests refused over HTTP",
            ["status", "reason"],
            registry=self.registry,
        )
        self._grpc_refused = Counter(
            "edgeserve_grpc_refused",
            "Calls refused over gRPC",
            ["code", "reason"],
            registry=self.registry,
        )
        self.refused = 0  # over both
        self.steps = 0  # of chains
        self.accept_failures = Counter(
            "edgeserve_accept_failures",
            "Times that connections could not be accepted, mostly for too many open files",
            registry=self.registry,
        )
        self.registry.register(_Elsewhere("edgeserve_log_lines_dropped", DROPPED, dropped_lines))
        self.connections = Gauge(
            "edgeserve_connections", "Open client connections", registry=self.registry
        )
        self._in_flight = Gauge(
            "edgeserve_in_flight_requests",
            "Requests being handled, of all models",
            registry=self.registry,
        )
        process = psutil.Process()
        memory = Gauge("edgeserve_resident_memory_bytes", "Resident memory", registry=self.registry)
        memory.set_function(lambda: process.memory_info().rss)

    def model(self, name: str, version: str) -> ModelMetrics:
        """The counters of one version of a model, which outlive its being unloaded and loaded again."""
        known = self._models.get((name, version))
        if known is None:
            known = self._models[name, version] = ModelMetrics(self, name, version)
        return known

    def models(self) -> list[ModelMetrics]:
        """Of every version that was ever served."""
        return list(self._models.values())

    def counted(self) -> list[int]:
        """Numbers that tell whether anything was counted since they were last looked at."""
        found = [self.refused, self.steps]
        for model in self._models.values():
            found += (model.answered, *model.failures.values())
        return found

    def retire(self, name: str, version: str) -> None:
        """A version is not served any more: what it has counted stays, what is true of it now goes."""
        metrics = self._models.get((name, version))
        if metrics is not None:
            metrics.retire()

    def refuse_http(self, status: int, reason: str) -> None:
        """A request was refused; `reason` is one of a few words, never a client's."""
        self._http_refused.labels(str(status), reason).inc()
        self.refused += 1

    def refuse_grpc(self, code: str, reason: str) -> None:
        """Likewise a call; from any thread."""
        self._grpc_refused.labels(code, reason).inc()
        self.refused += 1

    def watch_flight(self, flight: InFlight) -> None:
        self._in_flight.set_function(lambda: flight.count)

    def render(self) -> bytes:
        return rendered(self.registry)


def rendered(content: Collector) -> bytes:
    """As Prometheus text."""
    return _COUNTERS.sub(rb"# TYPE \1 counter", generate_latest(content))


class ModelMetrics:
    """One model's children, looked up once: `labels()` costs more than counting does.

    `recorder` has what the statistics of the protocols tell.
    """

    def __init__(self, server: ServerMetrics, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.recorder = Recorder()
        self._server = server
        self._gauges: set[tuple[Gauge, tuple[str, ...]]] = set()
        self._retired = False
        # Not a prometheus_client counter: that one's lock costs ten times what counting does.
        self.answered = 0
        self.created = time.time()
        self._failures = {r: server._failures.labels(name, version, r) for r in FAILURES}
        self.failures = dict.fromkeys(FAILURES, 0)
        self._ran: list[BatchTimes] = []  # and not observed yet
        self._batch = server._batch.labels(name, version, self._observe)
        self._queue = server._queue.labels(name, version, self._observe)
        self._compute = server._compute.labels(name, version, self._observe)
        self.cache_hits = server._cache_hits.labels(name, version)
        self.cache_misses = server._cache_misses.labels(name, version)
        self._serving: Candidate | None = None

    def _gauge(self, metric: Gauge, *labels: str) -> Gauge:
        self._gauges.add((metric, labels))
        return metric.labels(*labels)

    def watch_pending(self, pending: Callable[[], float]) -> None:
        """It serves from now on."""
        self._retired = False
        self._gauge(self._server._pending, self.name, self.version).set_function(pending)

    def retire(self) -> None:
        self._retired = True
        self._serving = None
        for metric, labels in self._gauges:
            with contextlib.suppress(KeyError):
                metric.remove(*labels)
        self._gauges.clear()

    def failed(self, reason: str, seconds: float = 0.0) -> None:
        """A request failed, after so long."""
        self._failures[reason].inc()
        self.failures[reason] += 1
        self.recorder.failed(seconds)

    def batch(self, batch: BatchTimes) -> None:
        """A batch ran. Observed when somebody looks, or many have run: between two calls of a model, that
        code would have to be fetched from memory each time."""
        self._ran.append(batch)
        if len(self._ran) >= UNCOUNTED:
            self._observe()

    def _observe(self) -> None:
        for batch in self._ran:
            self._batch.observe(batch.rows)
            self._compute.observe(batch.compute_s)
            for seconds in batch.queue_s:
                self._queue.observe(seconds)
        self._ran.clear()

    def serving(self, candidate: Candidate) -> None:
        """Say which candidate serves; the one before reads 0."""
        if candidate is self._serving or self._retired:
            return
        for known, value in ((self._serving, 0), (candidate, 1)):
            if known is not None:
                labels = (self.name, self.version, known.variant, known.runtime, known.device)
                self._gauge(self._server._candidate, *labels).set(value)
        self._serving = candidate

    def fell_back(self, source: Candidate, destination: Candidate, reason: str) -> None:
        labels = (self.name, source.label, destination.label, reason)
        self._server._fallback.labels(*labels).inc()
        self._server.steps += 1

    def unbatched(self, candidate: Candidate) -> None:
        """A candidate's batches were found to mix requests."""
        self._server._unbatched.labels(self.name, self.version, candidate.label).inc()

    def replayed(self, replay: Replay, requests: int) -> None:
        labels = (self.name, replay.source, replay.destination, replay.reason)
        self._server._replayed.labels(*labels).inc(requests)
        self._server.steps += 1

    def recovered(self, source: Candidate, destination: Candidate) -> None:
        labels = (self.name, source.label, destination.label)
        self._server._recovered.labels(*labels).inc()
        self._server.steps += 1
