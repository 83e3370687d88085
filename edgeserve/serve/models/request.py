"""A decoded inference request, as a model takes it from any protocol."""

from __future__ import annotations

import msgspec

from edgeserve.tensors import Tensors


class InferRequest(msgspec.Struct, frozen=True):
    """One request. A codec returns a subclass of it with what encoding the answer needs besides.

    `inputs` are checked against the model's interface and may be views on the body. `outputs` are the names of
    those wanted. `id` is the client's own, for the log. `timeout_s` None: the model's default, 0: none.
    `priority` 1 is the highest, 0 the model's default.
    """

    inputs: Tensors
    rows: int
    outputs: tuple[str, ...]
    id: str | None = None
    timeout_s: float | None = None
    priority: int = 0
