"""From a model on disk to a served one: the bundle, its chain, its engine. Blocking; called on threads."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec

import msgspec

from edgeserve.bundle import Bundle
from edgeserve.chain import Chain, ChainOptions
from edgeserve.chain.planning import first_candidate, matching, planned
from edgeserve.devices import usable_cores
from edgeserve.errors import ModelUnavailable, UsageError
from edgeserve.preprocess import ImageLimits
from edgeserve.serve.engine import Engine, EngineSettings, LevelSettings, ResponseCache, Turns
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.sources import ModelSource
from edgeserve.serve.settings.model import PriorityTable
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.setting import said, taken
from edgeserve.tensors import Interface

log = logging.getLogger(__name__)


def chain_options(settings: Settings) -> ChainOptions:
    """What settings say about the chain of a model; `instances` and `threads` may be left open (0)."""
    return taken(
        ChainOptions,
        settings,
        fallback=settings.fallback == "auto",
        batches=settings.preferred_batches if settings.batching else (),
    )


class Opener:
    """Opens models for one server: they share its recorder, its turns and its cache."""

    def __init__(
        self,
        recorder: Recorder,
        loop: asyncio.AbstractEventLoop,
        cache: ResponseCache | None = None,
        processes: int = 1,
    ) -> None:
        """`processes` like this one share the cores."""
        self._recorder = recorder
        self._loop = loop
        self._cache = cache
        self._processes = processes
        self._cores = max(1, usable_cores() // processes)
        self._turns = Turns(self._cores)

    def describe(self, source: ModelSource) -> ServedModel:
        """The model, without an engine yet. Raises BundleError; ModelUnavailable for a known problem."""
        if source.problem is not None:
            raise ModelUnavailable(f"model '{source.name}' cannot be loaded", cause=source.problem)
        bundle = Bundle.open(source.path)
        if self._processes > 1:
            self._check_devices(source, bundle)
        interface = _interface(bundle, source.settings)
        for output in sorted(source.labels.keys() - {s.name for s in interface.outputs}):
            log.warning(
                "%s: label_filename is for '%s', which is not an output", source.name, output
            )
        if bundle.manifest.task.preprocess is not None and find_spec("PIL") is None:
            log.warning(
                "%s: photographs cannot be read without pillow: pip install 'edgeserve[images]'",
                source.name,
            )
        return ServedModel(
            source.name,
            source.version,
            bundle,
            self._settings(bundle, source.settings),
            self._recorder.model(source.name, source.version),
            self._loop,
            interface=interface,
            labels=source.labels,
            policy=source.policy,
            cache=self._cache,
            image_limits=ImageLimits(
                source.settings.limits.image_pixels, source.settings.effective_limits().body_bytes
            ),
        )

    def open(self, source: ModelSource, model: ServedModel) -> Engine:
        """An engine for the model: its chain open, golden-checked and warm. Raises what Chain raises."""
        chain = Chain(model.bundle, self._plan(model.bundle, source.settings))
        try:
            return Engine(
                chain, model.settings, self._loop, model.ran, self._turns, model.unbatched
            )
        except BaseException:
            chain.close()
            raise

    def estimate(self, source: ModelSource, model: ServedModel) -> int:
        """Bytes the model takes at least: its files, and once more what the engine makes of them."""
        first = first_candidate(model.bundle, chain_options(source.settings))
        return 2 * model.bundle.manifest.variant(first.variant).size_bytes

    def forget(self, model: ServedModel) -> None:
        """The model is no longer served: its gauges go."""
        self._recorder.retire(model.name, model.version)

    def _settings(self, bundle: Bundle, settings: Settings) -> EngineSettings:
        levels = {own.level: _level(settings, own) for own in settings.priority}
        instances = self._plan(bundle, settings).instances
        return taken(EngineSettings, settings, instances=instances, levels=levels)

    def _plan(self, bundle: Bundle, settings: Settings) -> ChainOptions:
        """How the chain is opened, with what is left open chosen for this process's share of the cores."""
        options = planned(bundle, chain_options(settings), self._cores)
        if self._processes > 1 and not options.threads:
            # An engine's own choice is all cores, which are not this process's alone.
            threads = max(1, self._cores // options.instances)
            return msgspec.structs.replace(options, threads=threads)
        return options

    def _check_devices(self, source: ModelSource, bundle: Bundle) -> None:
        """Refuse accelerators for several processes: each would open the model there. Raises UsageError."""
        found = matching(bundle.manifest.chain, chain_options(source.settings))
        device = next((c.device for c in found if c.kind != "cpu"), None)
        if device is not None:
            raise UsageError(
                f"model '{source.name}' may be opened on {device}, "
                f"which {self._processes} workers would do side by side",
                hint="--device cpu, or --workers 1: one process keeps an accelerator busy",
            )


def _level(settings: Settings, own: PriorityTable) -> LevelSettings:
    """What holds for one priority. Its queue is the model's unless it has one of its own."""
    differs = said(own)
    del differs["level"]
    level = msgspec.structs.replace(settings, **differs)
    return taken(LevelSettings, level, queue=differs.get("queue"))


def _interface(bundle: Bundle, settings: Settings) -> Interface:
    """The bundle's, with batches no larger than the settings allow."""
    interface = bundle.manifest.interface
    if 0 < settings.max_batch < interface.max_batch:
        return msgspec.structs.replace(interface, max_batch=settings.max_batch)
    return interface
