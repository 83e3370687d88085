"""The models of one server by name and version: what protocols ask for a model, and what is loaded."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeserve.errors import ModelNotFound
from edgeserve.serve.model import ServedModel

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


class IndexEntry(msgspec.Struct, frozen=True):
    """One version of one model, as the model repository extension lists it. `reason` says why a
    version is not READY."""

    name: str
    version: str
    state: State
    reason: str = ""


class ModelRepository:
    """Lives on the event loop; owns its models."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._serving = False

    def add(self, model: ServedModel) -> None:
        self._models.setdefault(model.name, {})[model.version] = model

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model that answers for `name`: its newest version unless one is named.

        Raises ModelNotFound.
        """
        versions = self._models.get(name)
        if not versions:
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
        return [IndexEntry(m.name, m.version, "READY") for m in self.loaded()]

    @property
    def ready(self) -> bool:
        """Whether the server takes requests: its models serve, and it does not drain."""
        return self._serving

    def serve(self) -> None:
        self._serving = True

    def stop_serving(self) -> None:
        self._serving = False
