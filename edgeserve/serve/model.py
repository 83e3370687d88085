"""One served model: its engine, its counters, and how a decoded request becomes an answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from edgeserve.bundle import Candidate
from edgeserve.chain import Attempt, Chain, ChainStatus
from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import (
    BatchTimes,
    DeadlineExceeded,
    Engine,
    EngineSettings,
    Outcome,
    Pending,
    QueueFull,
    ShuttingDown,
)
from edgeserve.serve.metrics import ModelMetrics
from edgeserve.serve.model_config import (
    DynamicBatching,
    InstanceGroup,
    Latest,
    ModelConfig,
    TransactionPolicy,
    VersionPolicy,
    task_parameters,
    tensor_configs,
)
from edgeserve.serve.protocols.v2 import InferRequest
from edgeserve.serve.statistics import MemoryUsage, ModelStatistics, Recorder


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
        self._recorder = Recorder()
        self.engine = Engine(chain, settings, loop, self._ran)
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

    @property
    def ready(self) -> bool:
        """Whether it takes requests now, and a device that may serve answers."""
        return not self.engine.closing and self.status.ready

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        if self.engine.closing:
            return "it is being unloaded"
        return "" if self.ready else self.status.reason or "no candidate serves"

    def statistics(self) -> ModelStatistics:
        size = self._chain.bundle.manifest.variant(self.candidate.variant).size_bytes
        kind = "CPU" if self.candidate.device == "cpu" else "GPU"
        return self._recorder.read(self.name, self.version, (MemoryUsage(kind, 0, size),))

    def config(self) -> ModelConfig:
        kind = "KIND_CPU" if self.candidate.device == "cpu" else "KIND_GPU"
        group = InstanceGroup(f"{self.name}_0", kind, self.engine.settings.instances)
        return ModelConfig(
            name=self.name,
            platform=self.platform,
            backend=self.candidate.runtime,
            version_policy=VersionPolicy(latest=Latest()),
            max_batch_size=self.interface.max_batch,
            input=tensor_configs(self.interface.inputs, self.interface),
            output=tensor_configs(self.interface.outputs, self.interface),
            instance_group=(group,),
            model_transaction_policy=TransactionPolicy(),
            dynamic_batching=DynamicBatching() if self.engine.max_batch > 1 else None,
            parameters=task_parameters(self._chain.bundle),
        )

    def infer(
        self, request: InferRequest, done: Callable[[Outcome | EdgeServeError], None]
    ) -> Pending | None:
        """Run a request; `done` is called once. None when it was refused at once."""

        began = time.perf_counter()

        def count(result: Outcome | EdgeServeError) -> None:
            if not isinstance(result, Outcome):
                self._recorder.failed(time.perf_counter() - began)
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

    def _ran(self, batch: BatchTimes) -> None:
        self._recorder.batch(batch)
        self.metrics.batch(batch)

    def _count(self, result: Outcome | EdgeServeError) -> None:
        if isinstance(result, Outcome):
            self.metrics.requests.inc()
            self.metrics.serving(result.candidate)
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
