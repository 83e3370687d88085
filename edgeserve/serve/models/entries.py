"""One version of one model, as a repository keeps it: where it comes from, what serves it, what went wrong."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Literal, Protocol

import msgspec

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import Engine
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.sources import ModelSource

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


class Opens(Protocol):
    """What opens models (edgeserve.serve.models.opening); all but `forget` is called on threads."""

    def describe(self, source: ModelSource) -> ServedModel: ...

    def open(self, source: ModelSource, model: ServedModel) -> Engine: ...

    def estimate(self, source: ModelSource, model: ServedModel) -> int: ...

    def forget(self, model: ServedModel) -> None: ...


class Opened(msgspec.Struct, frozen=True):
    """A version that could serve. Without an engine it comes into memory when it is asked for."""

    source: ModelSource
    model: ServedModel
    engine: Engine | None


class Entry:
    """One version: where it comes from, what serves it, and what went wrong."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.model: ServedModel | None = None
        self.opened: Opened | None = None  # what is to take over
        self.state: State = "UNAVAILABLE"
        self.error: EdgeServeError | None = None
        self.off: str | None = None  # why it shall not be loaded
        self.size = 0
        self.failures = 0
        self.retry_at = 0.0

    @property
    def in_memory(self) -> bool:
        return self.model is not None and self.model.engine is not None

    @property
    def failed(self) -> bool:
        """Whether its last load failed, whatever serves."""
        return self.error is not None and self.off is None

    @property
    def problem(self) -> str:
        """Why it could not be loaded, without the server's own paths."""
        if self.error is None:
            return ""
        text, name = str(self.error), self.source.path.rpartition("/")[2]
        for path in (self.source.path, os.path.realpath(self.source.path)):
            text = text.replace(path, name)
        return text

    @property
    def ready(self) -> bool:
        """Whether it answers requests. One that is loaded when asked for does if that worked last time."""
        if self.model is None or not self.model.ready:
            return False
        return self.in_memory or self.error is None

    @property
    def shown_state(self) -> State:
        """The state that clients see."""
        if self.model is None or self.state == "LOADING":
            return self.state
        return "READY" if self.ready else "UNAVAILABLE"

    @property
    def reason(self) -> str:
        """Why it is not READY, or not in memory; otherwise empty."""
        reason = self.off or self.problem
        if reason:
            return reason
        if self.model is not None and self.state != "LOADING":
            return self.model.reason
        if self.state == "READY":
            return ""
        return "it is being loaded" if self.state == "LOADING" else "it is not loaded"


def answers(
    entries: Mapping[str, Mapping[str, Entry]],
    expected: Collection[str],
    readiness: Literal["all", "any"],
) -> bool:
    """Whether the models by their names answer: every model that should serve has a version that does, or any
    model has. Those that should are the `expected`, and those that do."""
    states = []
    for name, versions in entries.items():
        wanted = [e for e in versions.values() if e.off is None]
        answering = any(e.ready for e in wanted)
        if answering or (wanted and name in expected):
            states.append(answering)
    return any(states) if readiness == "any" else bool(states) and all(states)
