"""One served model: its engine, its counters, and how a decoded request becomes an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from edgeserve.bundle import Bundle, Candidate, Labels
from edgeserve.chain import (
    Attempt,
    Chain,
    ChainStatus,
    Fallback,
    LinkStatus,
    Promotion,
    Replay,
)
from edgeserve.errors import EdgeServeError, ModelUnavailable
from edgeserve.postprocess import Postprocessor
from edgeserve.preprocess import ImageLimits, ImageReader
from edgeserve.runtimes.guarded import asked_placement
from edgeserve.serve.engine import (
    BatchTimes,
    Engine,
    EngineSettings,
    Outcome,
    Pending,
    QueueFull,
    ResponseCache,
    ShuttingDown,
    set_clock,
)
from edgeserve.serve.metrics.reasons import failure_of
from edgeserve.serve.metrics.recorder import ModelRecorder
from edgeserve.serve.metrics.statistics import MemoryUsage, ModelStatistics, statistics_of
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.process import logs
from edgeserve.serve.settings.versions import Latest, VersionPolicy
from edgeserve.tensors import Interface

log = logging.getLogger(__name__)

Done = Callable[[Outcome | EdgeServeError], None]


class ServedModel:
    """A version of a model under its served name. Lives on the event loop; may be made on any thread.

    Its engine comes and goes. If memory is short, a model has none until a request comes: then `wanted` is called,
    and the request waits.
    """

    def __init__(
        self,
        name: str,
        version: str,
        bundle: Bundle,
        settings: EngineSettings,
        recorder: ModelRecorder,
        loop: asyncio.AbstractEventLoop,
        *,
        interface: Interface | None = None,
        labels: Mapping[str, Labels] | None = None,
        policy: VersionPolicy | None = None,
        cache: ResponseCache | None = None,
        image_limits: ImageLimits | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.bundle = bundle
        self.interface = interface or bundle.manifest.interface
        # The repository's configuration overrides the bundle.
        self.labels = {**bundle.output_labels(), **(labels or {})}
        self.class_names = {output: own.names for output, own in self.labels.items()}
        task = bundle.manifest.task
        # None: it takes no images.
        self.images = ImageReader.of(task.preprocess, self.interface, image_limits)
        self.postprocessor = Postprocessor(
            task, self.interface, self.class_names, bundle.labels() or ()
        )
        self.policy = policy or VersionPolicy(latest=Latest())
        self.recorder = recorder
        self.settings = settings
        self.engine: Engine | None = None
        self.wanted: Callable[[ServedModel], None] | None = None
        self.last_used = time.perf_counter()
        self.placements: dict[
            str, str
        ] = {}  # by candidate's label: the share of the model that its device runs
        self._loop = loop
        self._cache = cache
        self._scope = f"{name}/{version}/{id(self)}/{time.monotonic_ns()}"
        self._access = logs.ACCESS.isEnabledFor(logging.INFO)
        self._waiting: list[tuple[Pending, int]] = []
        self._chain: Chain | None = None
        self._reason = "it is being loaded"
        self._closed = False
        self._fallbacks_seen = self._promotions_seen = 0
        self._replays_seen: Counter[Replay] = Counter()

    # The engine comes and goes

    def new_chain(self, chain: Chain) -> None:
        """Use a chain that was opened for this model, and count its steps from now on."""
        self._chain = chain
        self._fallbacks_seen = self._promotions_seen = 0
        self._replays_seen.clear()
        self._note_steps()
        chain.listen(lambda: _call_soon(self._loop, self._note_steps))

    def attach(self, engine: Engine) -> None:
        """Serve with this engine from now on; run the requests that waited for one."""
        self.engine = engine
        if self._chain is not engine.chain:
            self.new_chain(engine.chain)
        self.recorder.watch_pending(self.pending)
        self.recorder.serving(engine.chain.candidate)
        waiting, self._waiting = self._waiting, []
        for request, priority in waiting:
            if request.settled:
                continue
            try:
                engine.take(request, priority)
            except EdgeServeError as error:
                request.settle(error)

    def detach(self, reason: str) -> Engine | None:
        """Give up the engine, which finishes its requests; new requests wait for another one."""
        engine, self.engine = self.engine, None
        self._reason = reason
        return engine

    def close(self, reason: str) -> None:
        """Take no more requests, for good."""
        self._closed = True
        self.fail(ModelUnavailable(f"model '{self.name}' is not ready", cause=reason))
        self._reason = reason

    def fail(self, error: EdgeServeError) -> None:
        """Fail the requests that wait for an engine."""
        self._reason = str(error)
        waiting, self._waiting = self._waiting, []
        for request, _ in waiting:
            request.settle(error)

    def read_placement(self) -> str | None:
        """Which share of the model an accelerator runs; None on a CPU, or if the runtime does not report it.
        Blocks; called on threads."""
        chain = self._chain
        if chain is None or chain.options.inject:
            return None
        candidate = chain.candidate
        if candidate.kind == "cpu":
            return None
        try:
            found = asked_placement(chain.session).describe()
        except EdgeServeError as error:
            log.debug("placement: %s", error)
            return None
        self.placements[candidate.label] = found
        return found

    def ran(self, batch: BatchTimes) -> None:
        """Called by the engine after each batch."""
        self.recorder.batch(batch)

    def unbatched(self, candidate: Candidate, reason: str) -> None:
        """Called by the engine when its requests run one at a time from now on."""
        self.recorder.unbatched(candidate)

    # What it is

    @property
    def candidate(self) -> Candidate:
        return self._chain.candidate if self._chain else self.bundle.manifest.chain[0]

    @property
    def status(self) -> ChainStatus:
        """Which candidate serves, since when, and why not the first."""
        if self.engine is None or self._chain is None:
            first = self.candidate
            return ChainStatus(first, time.time(), self.ready, first, reason=self._reason)
        return self._chain.status()

    @property
    def attempts(self) -> list[Attempt]:
        return self._chain.attempts if self._chain else []

    @property
    def links(self) -> list[LinkStatus]:
        """What each candidate of the chain is doing."""
        return self._chain.link_statuses() if self._chain else []

    @property
    def fallbacks(self) -> list[Fallback]:
        """Steps down since it was loaded."""
        return self._chain.fallbacks if self._chain else []

    @property
    def promotions(self) -> list[Promotion]:
        """Steps up since it was loaded."""
        return self._chain.promotions if self._chain else []

    @property
    def ready(self) -> bool:
        """Whether it answers requests: now, or once it has been loaded for them."""
        if self._closed:
            return False
        if self.engine is None:
            return self.wanted is not None
        return not self.engine.closing and self.engine.chain.status().ready

    @property
    def reason(self) -> str:
        """Why it is not ready, or not in memory; empty if it is both."""
        if self.engine is None or self._closed:
            return self._reason
        if self.engine.closing:
            return "it is being unloaded"
        status = self.engine.chain.status()
        return "" if status.ready else status.reason or "its device does not answer"

    @property
    def keeps_state(self) -> bool:
        """Whether it has variables; each request starts from their initial values."""
        return bool(self.bundle.manifest.state)

    def pending(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + (self.engine.pending if self.engine is not None else 0)

    def statistics(self) -> ModelStatistics:
        memory: tuple[MemoryUsage, ...] = ()
        if self.engine is not None:
            size = self.bundle.manifest.variant(self.candidate.variant).size_bytes
            kind = "CPU" if self.candidate.device == "cpu" else "GPU"
            memory = (MemoryUsage(kind, 0, size),)
        return statistics_of(self.recorder, memory)

    # Requests

    def infer(self, request: InferRequest, done: Done) -> Pending | None:
        """Run a request; `done` is called once. None when it was answered or refused at once."""
        began = self.last_used = time.perf_counter()
        if self._cache is not None:
            return self._infer_cached(self._cache, request, done, began)

        def answer(result: Outcome | EdgeServeError) -> None:
            self._answered(request, result, began)
            done(result)

        return self._run(request, answer, began)

    def _infer_cached(
        self, cache: ResponseCache, request: InferRequest, done: Done, began: float
    ) -> Pending | None:
        names = request.outputs
        # With the era: what a device answered is forgotten when it fails.
        era = self._chain.era if self._chain is not None else -1
        key = cache.key(f"{self._scope}/{era}", request.inputs, names)
        kept = cache.get(key)
        took = time.perf_counter() - began
        if kept is not None:
            self.recorder.cache_hit(took)
            self._answered(request, kept, began)
            done(kept)
            return None
        self.recorder.cache_miss(took)

        def answer(result: Outcome | EdgeServeError) -> None:
            if isinstance(result, Outcome):
                cache.put(key, result, names)
            self._answered(request, result, began)
            done(result)

        return self._run(request, answer, began)

    def _run(self, request: InferRequest, answer: Done, began: float) -> Pending | None:
        try:
            engine = self.engine
            if engine is None or self._closed:
                return self._wait(request, answer, began)
            return engine.submit(
                request.inputs, request.rows, request.timeout_s, answer, request.priority
            )
        except (QueueFull, ShuttingDown, ModelUnavailable) as error:
            answer(error)
            return None

    def _wait(self, request: InferRequest, answer: Done, began: float) -> Pending:
        """Queue a request until there is an engine. Raises ModelUnavailable, QueueFull."""
        if self._closed or self.wanted is None:
            raise ModelUnavailable(f"model '{self.name}' is not ready", cause=self._reason)
        self._waiting = [w for w in self._waiting if not w[0].settled]
        held, most = self._held(request.priority)
        if held >= most:
            raise QueueFull(f"{held} requests wait for the model to be loaded")
        pending = Pending(request.inputs, request.rows, answer, began)
        set_clock(pending, self.settings, request.timeout_s, request.priority, self._loop)
        if pending.settled:
            return pending
        self._waiting.append((pending, request.priority))
        self.wanted(self)
        return pending

    def _held(self, priority: int) -> tuple[int, int]:
        """How many requests of this priority's queue wait for the model to be loaded, and how many may."""
        settings = self.settings
        levels = [settings.known(p) for _, p in self._waiting]
        apart = settings.apart
        mine = settings.known(priority)
        if mine in apart:
            return levels.count(mine), apart[mine]
        return sum(level not in apart for level in levels), settings.queue

    def cancel(self, pending: Pending) -> None:
        """Do not run a request that has not started: its client is gone."""
        if pending.cancel():
            self.recorder.failed("canceled")

    def _answered(
        self, request: InferRequest, result: Outcome | EdgeServeError, began: float
    ) -> None:
        if isinstance(result, Outcome):
            self.recorder.answered += 1
        else:
            self.recorder.failed(failure_of(result), time.perf_counter() - began)
        if self._access:
            self._log(request, result, time.perf_counter() - began)

    def _log(self, request: InferRequest, result: Outcome | EdgeServeError, took: float) -> None:
        fields: dict[str, object] = {"rows": request.rows, "ms": round(1000 * took, 3)}
        if isinstance(result, Outcome):
            fields |= {
                "queue_ms": round(1000 * result.queue_s, 3),
                "compute_ms": round(1000 * result.compute_s, 3),
                "batch": result.batch,
                "device": result.candidate.device,
            }
        what = "ok" if isinstance(result, Outcome) else failure_of(result)
        logs.log_request(request.id, self.name, self.version, what, **fields)

    def _note_steps(self) -> None:
        """Count the chain's steps since the last time."""
        chain = self._chain
        if chain is None:
            return
        new = chain.fallbacks[self._fallbacks_seen :]
        for fallback in new:
            self.recorder.fell_back(fallback.source, fallback.destination, fallback.reason)
            self.placements.pop(fallback.source.label, None)
        self._fallbacks_seen += len(new)
        back = chain.promotions[self._promotions_seen :]
        for promotion in back:
            self.recorder.recovered(promotion.source, promotion.destination)
        self._promotions_seen += len(back)
        replays = chain.replays()
        for replay, count in (replays - self._replays_seen).items():
            self.recorder.replayed(replay, count)
        self._replays_seen = replays
        if back:
            self._loop.run_in_executor(None, self.read_placement)
        self.recorder.serving(chain.candidate)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the server has just ended
        loop.call_soon_threadsafe(call)
