"""What the handlers of every protocol answer from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgeserve.errors import ModelNotFound
from edgeserve.serve.control import Control
from edgeserve.serve.http.route import RouteList
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.protocols.codec import InferenceProtocol
from edgeserve.serve.protocols.inference import Inference
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from edgeserve.serve.status.page import StatusPage

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """One server, as protocols see it. `lists` are the routes of all protocols; `model_control`: clients may load
    and unload models. `v2` is the Open Inference Protocol, to which other protocols hand the bodies that are written
    in it: its terms are the length of the JSON before binary tensors, None for plain JSON."""

    lists: tuple[RouteList[Served], ...]
    repository: ModelRepository
    control: Control
    shm: SharedMemory
    limits: Limits
    inference: Inference
    v2: InferenceProtocol[int | None, Any]
    page: StatusPage
    model_control: bool
    _kept: dict[Any, Any] = field(default_factory=dict)

    def the_model(self) -> str:
        """The name of the model that routes without a model's name are about: the only one. Raises ModelNotFound."""
        names = {entry.source.name for entry in self.repository.entries()}
        if len(names) == 1:
            return names.pop()
        if not names:
            raise ModelNotFound("no model is served")
        raise ModelNotFound(
            f"this route serves a server's only model, and there are {len(names)}: {', '.join(sorted(names))}"
        )

    def kept(self, make: Callable[[Served], T]) -> T:
        """What a protocol makes once for a server and keeps: `make(self)`."""
        found: T | None = self._kept.get(make)
        if found is None:
            found = self._kept[make] = make(self)
        return found
