"""The models of one server by name and version: what protocols ask for a model, and what is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from edgeserve.errors import EdgeServeError, InvalidInput, ModelNotFound, ModelUnavailable
from edgeserve.serve.model import ServedModel

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
# What load takes beside the name; `config` and files are refused, models come from this machine only.
Parameters = Mapping[str, "str | int | bool | bytes"]
_DRAIN_S: Final = 30.0


class IndexEntry(msgspec.Struct, frozen=True):
    """One version of one model, as the model repository extension lists it. `reason` says why a
    version is not READY."""

    name: str
    version: str
    state: State
    reason: str = ""


class ModelRepository:
    """Lives on the event loop; owns its models.

    `sources` opens a model by name: blocking, called on a thread.
    """

    def __init__(self, sources: Mapping[str, Callable[[], ServedModel]] | None = None) -> None:
        self._sources = dict(sources or {})
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._reasons: dict[str, str] = {}
        self._states: dict[str, State] = {}
        self._changing = asyncio.Lock()
        self._serving = False

    def add(self, model: ServedModel) -> None:
        self._models.setdefault(model.name, {})[model.version] = model

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model that answers for `name`: its newest version unless one is named.

        Raises ModelNotFound, and ModelUnavailable for one that is known but does not serve.
        """
        versions = self._models.get(name)
        if not versions:
            if name in self._sources:
                reason = self._reasons.get(name, "it is not loaded")
                raise ModelUnavailable(f"model '{name}' is not ready", cause=reason)
            known = ", ".join(self._models) or "none"
            raise ModelNotFound(f"unknown model; loaded: {known}")
        if version is None:
            return versions[max(versions, key=int)]
        model = versions.get(version)
        if model is None:
            raise ModelNotFound(f"'{name}' has only version {', '.join(versions)}")
        return model

    def versions(self, name: str) -> list[str]:
        """The loaded versions of a model, oldest first."""
        return sorted(self._models.get(name, {}), key=int)

    def loaded(self) -> list[ServedModel]:
        return [m for versions in self._models.values() for m in versions.values()]

    def index(self) -> list[IndexEntry]:
        """Every version of every known model."""
        entries = [IndexEntry(m.name, m.version, _state(m), m.reason) for m in self.loaded()]
        for name in self._sources.keys() - self._models.keys():
            state = self._states.get(name, "UNAVAILABLE")
            entries.append(IndexEntry(name, "1", state, self._reasons.get(name, "not loaded")))
        return entries

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        """Load a model, or load it again: what served it is answered and then closed.

        Raises ModelNotFound, InvalidInput, and what opening its bundle raises.
        """
        if parameters:
            raise InvalidInput(
                f"load parameter '{min(parameters)}' is not taken: models come from this server's disk"
            )
        source = self._sources.get(name)
        if source is None:
            raise ModelNotFound(f"no model '{name}' in this server's repository")
        async with self._changing:
            self._states[name] = "LOADING"
            try:
                model = await asyncio.to_thread(source)
            except EdgeServeError as error:
                self._states[name] = "UNAVAILABLE"
                self._reasons[name] = str(error)
                raise
            old = self._models.get(name, {})
            self._models[name] = {model.version: model}
            self._states[name] = "READY"
            self._reasons.pop(name, None)
            await self._retire(list(old.values()))

    async def unload(self, name: str) -> None:
        """Stop serving a model; what it has begun is answered first. Raises ModelNotFound."""
        if name not in self._sources:
            raise ModelNotFound(f"no model '{name}' in this server's repository")
        async with self._changing:
            old = self._models.pop(name, {})
            self._states[name] = "UNAVAILABLE"
            self._reasons[name] = "it was unloaded"
            await self._retire(list(old.values()))

    async def _retire(self, models: list[ServedModel]) -> None:
        for model in models:
            await model.engine.drain(_DRAIN_S)
            await asyncio.to_thread(model.engine.close)

    @property
    def ready(self) -> bool:
        """Whether the server takes requests: its models serve, and it does not drain."""
        return self._serving and all(model.ready for model in self.loaded())

    def serve(self) -> None:
        self._serving = True

    def stop_serving(self) -> None:
        self._serving = False

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight; False when time ran out."""
        drained = await asyncio.gather(*(m.engine.drain(timeout_s) for m in self.loaded()))
        return all(drained)

    async def close(self) -> None:
        for model in self.loaded():
            await asyncio.to_thread(model.engine.close)


def _state(model: ServedModel) -> State:
    if model.engine.closing:
        return "UNLOADING"
    return "READY" if model.ready else "UNAVAILABLE"
