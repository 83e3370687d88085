"""One served model: its engine, its counters, and how a decoded request becomes an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from edgeserve.bundle import Candidate
from edgeserve.chain import Attempt, Chain, ChainStatus
from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import (
    DeadlineExceeded,
    Engine,
    EngineSettings,
    Outcome,
    Pending,
    QueueFull,
    ShuttingDown,
)
from edgeserve.serve.metrics import ModelMetrics
from edgeserve.serve.protocols.v2 import InferRequest


class ServedModel:
    """A loaded model under its served name. Lives on the event loop; owns its engine."""

    def __init__(
        self,
        name: str,
        version: str,
        chain: Chain,
        settings: EngineSettings,
        metrics: ModelMetrics,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self.version = version
        self.interface = chain.interface
        self.labels = chain.bundle.labels()
        self.metrics = metrics
        self.engine = Engine(chain, settings, loop, metrics.batch)
        self._chain = chain
        self._fallbacks_seen = 0
        self._promotions_seen = 0
        self._note_steps()
        chain.listen(lambda: _call_soon(loop, self._note_steps))
        metrics.watch_pending(lambda: self.engine.pending)

    @property
    def candidate(self) -> Candidate:
        return self._chain.candidate

    @property
    def status(self) -> ChainStatus:
        """Which candidate serves, since when, and why not the first."""
        return self._chain.status()

    @property
    def attempts(self) -> list[Attempt]:
        return self._chain.attempts

    @property
    def platform(self) -> str:
        """The name that clients of the protocol know this kind of model by."""
        candidate = self.candidate
        file_format = self._chain.bundle.manifest.variant(candidate.variant).format
        return f"{candidate.runtime}_{file_format.removeprefix(candidate.runtime + '-')}"

    def infer(
        self, request: InferRequest, done: Callable[[Outcome | EdgeServeError], None]
    ) -> Pending | None:
        """Run a request; `done` is called once. None when it was refused at once."""

        def count(result: Outcome | EdgeServeError) -> None:
            self._count(result)
            done(result)

        try:
            return self.engine.submit(request.inputs, request.rows, request.timeout_s, count)
        except (QueueFull, ShuttingDown) as error:
            count(error)
            return None

    def cancel(self, pending: Pending) -> None:
        self.engine.cancel(pending)
        self.metrics.failed("canceled")

    def _count(self, result: Outcome | EdgeServeError) -> None:
        if isinstance(result, Outcome):
            self.metrics.requests.inc()
        else:
            self.metrics.failed(_reason(result))

    def _note_steps(self) -> None:
        """Count the chain's steps since the last time."""
        new = self._chain.fallbacks[self._fallbacks_seen :]
        for fallback in new:
            self.metrics.fell_back(fallback.source, fallback.destination, fallback.reason)
        self._fallbacks_seen += len(new)
        back = self._chain.promotions[self._promotions_seen :]
        for promotion in back:
            self.metrics.recovered(promotion.source, promotion.destination)
        self._promotions_seen += len(back)
        self.metrics.serving(self._chain.candidate)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the server has just ended
        loop.call_soon_threadsafe(call)


def _reason(error: EdgeServeError) -> str:
    kinds = {QueueFull: "queue_full", ShuttingDown: "draining", DeadlineExceeded: "timeout"}
    return next((r for kind, r in kinds.items() if isinstance(error, kind)), "engine")
