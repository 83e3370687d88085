"""What happens in a server, counted once: requests, batches, refusals, steps along a chain. Everything that shows
numbers renders what is counted here: Prometheus text, Triton's metric names, the v2 statistics, the status page.

To count another kind of event, add a Tally to `Recorder` and call its `add` where the event happens.
Labels come from loaded models and a few fixed words, never from what a client sends.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from edgeserve.bundle import Candidate
from edgeserve.chain import Replay
from edgeserve.serve.engine import UNCOUNTED, BatchTimes

FAILURES: Final = (
    "invalid", "engine", "in_flight", "queue_full", "timeout", "draining", "canceled",
    "unavailable",
)  # fmt: skip
SECONDS: Final = (
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
# Five a decade, from 25 us to 10 s: percentiles are estimated from them.
REQUEST_SECONDS: Final = (
    25e-6, 40e-6, 63e-6, 100e-6, 160e-6, 250e-6, 400e-6, 630e-6, 1e-3, 1.6e-3, 2.5e-3, 4e-3, 6.3e-3,
    10e-3, 16e-3, 25e-3, 40e-3, 63e-3, 100e-3, 160e-3, 250e-3, 400e-3, 630e-3, 1.0, 1.6, 2.5, 4.0,
    6.3, 10.0,
)  # fmt: skip


class Tally:
    """How often a rare event happened, by its labels; from any thread. `name` and `what` are the metric's."""

    def __init__(self, name: str, what: str, *labels: str) -> None:
        self.name, self.what, self.labels = name, what, labels
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._created: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()
        if not labels:
            self.add(times=0)

    def add(self, *labels: str, times: int = 1) -> None:
        with self._lock:
            self._created.setdefault(labels, time.time())
            self._counts[labels] += times

    def read(self) -> list[tuple[tuple[str, ...], int, float]]:
        """Labels, count, and when they were first seen (seconds since 1970)."""
        with self._lock:
            return [(labels, n, self._created[labels]) for labels, n in self._counts.items()]

    @property
    def total(self) -> int:
        with self._lock:
            return self._counts.total()


class Recorder:
    """Counts for one process."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelRecorder] = {}
        self.fallbacks = Tally(
            "edgeserve_fallback", "Steps down the chain", "model", "from", "to", "reason"
        )
        self.replays = Tally(
            "edgeserve_request_replayed",
            "Requests that failed on one candidate and were answered by another",
            "model", "from", "to", "reason",
        )  # fmt: skip
        self.recoveries = Tally(
            "edgeserve_recovered", "Steps back up the chain", "model", "from", "to"
        )
        self.unbatched = Tally(
            "edgeserve_batching_stopped",
            "Candidates whose batches were found to mix requests, which then run one at a time",
            "model", "version", "candidate",
        )  # fmt: skip
        self.http_refusals = Tally(
            "edgeserve_http_refused", "Requests refused over HTTP", "status", "reason"
        )
        self.grpc_refusals = Tally(
            "edgeserve_grpc_refused", "Calls refused over gRPC", "code", "reason"
        )
        self.accept_failures = Tally(
            "edgeserve_accept_failures",
            "Times that connections could not be accepted, mostly for too many open files",
        )
        self.connections = 0  # of HTTP, open now

    def model(self, name: str, version: str) -> ModelRecorder:
        """The counts of one version of a model, which outlive its being unloaded and loaded again."""
        known = self._models.get((name, version))
        if known is None:
            known = self._models[name, version] = ModelRecorder(self, name, version)
        return known

    def models(self) -> list[ModelRecorder]:
        """The counts of every version that was ever served."""
        return list(self._models.values())

    def tallies(self) -> Iterator[Tally]:
        return (value for value in vars(self).values() if isinstance(value, Tally))

    def counted(self) -> list[int]:
        """Numbers that tell whether anything was counted since they were last looked at."""
        found = [tally.total for tally in self.tallies()]
        for model in self._models.values():
            found += (model.answered, *model.failures.values())
        return found

    def retire(self, name: str, version: str) -> None:
        """A version is no longer served: its counts stay, its gauges go."""
        if (name, version) in self._models:
            self._models[name, version].retire()

    def refuse_http(self, status: int, reason: str) -> None:
        """A request was refused; `reason` is one of a few words, never a client's."""
        self.http_refusals.add(str(status), reason)

    def refuse_grpc(self, code: str, reason: str) -> None:
        """A gRPC call was refused; from any thread."""
        self.grpc_refusals.add(code, reason)


class Histogram:
    """How many values lie between `bounds`, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class BatchesOfSize:
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

    def add(self, batch: BatchTimes) -> None:
        self.batches += 1
        self.input += batch.input_s
        self.infer += batch.infer_s
        self.output += batch.output_s
        requests = len(batch.queue_s)
        self.requests += requests
        if requests == 1:
            self.queue += batch.queue_s[0]
        else:
            self.queue += sum(batch.queue_s)
            self.more_input += (requests - 1) * batch.input_s
            self.more_infer += (requests - 1) * batch.infer_s
            self.more_output += (requests - 1) * batch.output_s


class ModelRecorder:
    """Counts for one version of a model. The event loop alone writes and reads, so no lock: prometheus_client's costs
    ten times what counting does.

    Times are seconds, `last` and `created` seconds since 1970. To be brought up to date by `catch_up` before what
    batches add to is read: `sizes`, `queue`, `compute`, `request`.
    """

    def __init__(self, server: Recorder, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.created = time.time()
        self.answered = 0
        self.failures = dict.fromkeys(FAILURES, 0)
        self.failed_s = 0.0
        self.cache_hits = self.cache_misses = 0
        self.cache_hit_s = self.cache_miss_s = 0.0
        self.last = 0.0  # when it last computed or took an answer from the cache
        self.sizes: dict[int, BatchesOfSize] = {}  # by rows
        self.queue = Histogram(SECONDS)
        self.compute = Histogram(SECONDS)
        self.request = Histogram(REQUEST_SECONDS)
        # What is true now, of versions that are served: whether a variant, runtime and device serve.
        self.pending: Callable[[], int] | None = None
        self.candidates: dict[tuple[str, str, str], bool] = {}
        self._server = server
        self._retired = False
        self._ran: list[BatchTimes] = []  # and not counted yet

    # Requests

    def failed(self, reason: str, seconds: float = 0.0) -> None:
        """A request failed, after so long."""
        self.failures[reason] += 1
        self.failed_s += seconds

    def cache_hit(self, seconds: float) -> None:
        """A request was answered from the cache; that took `seconds`."""
        self.cache_hits += 1
        self.cache_hit_s += seconds
        self.request.observe(seconds)
        self.last = time.time()

    def cache_miss(self, seconds: float) -> None:
        self.cache_misses += 1
        self.cache_miss_s += seconds

    def batch(self, batch: BatchTimes) -> None:
        """A batch ran and all its requests were answered. Counted when somebody looks, or many have run: between two
        calls of a model, that code would have to be fetched from memory each time."""
        self._ran.append(batch)
        self.last = time.time()
        if len(self._ran) >= UNCOUNTED:
            self.catch_up()

    def catch_up(self) -> None:
        for batch in self._ran:
            size = self.sizes.get(batch.rows)
            if size is None:
                size = self.sizes[batch.rows] = BatchesOfSize()
            size.add(batch)
            compute = batch.compute_s
            self.compute.observe(compute)
            for seconds in batch.queue_s:
                self.queue.observe(seconds)
                self.request.observe(seconds + compute)
        self._ran.clear()

    # Its device

    def watch_pending(self, pending: Callable[[], int]) -> None:
        """The version serves from now on; `pending` gives its queued and running requests."""
        self._retired = False
        self.pending = pending

    def retire(self) -> None:
        self._retired = True
        self.pending = None
        self.candidates.clear()

    def serving(self, candidate: Candidate) -> None:
        """Note which candidate serves from now on."""
        if not self._retired:
            now = (candidate.variant, candidate.runtime, candidate.device)
            self.candidates = {**dict.fromkeys(self.candidates, False), now: True}

    def fell_back(self, source: Candidate, destination: Candidate, reason: str) -> None:
        self._server.fallbacks.add(self.name, source.label, destination.label, reason)

    def replayed(self, replay: Replay, requests: int) -> None:
        labels = (self.name, replay.source, replay.destination, replay.reason)
        self._server.replays.add(*labels, times=requests)

    def recovered(self, source: Candidate, destination: Candidate) -> None:
        self._server.recoveries.add(self.name, source.label, destination.label)

    def unbatched(self, candidate: Candidate) -> None:
        """A candidate's batches were found to mix requests."""
        self._server.unbatched.add(self.name, self.version, candidate.label)
