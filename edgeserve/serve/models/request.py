"""A decoded inference request, whatever protocol it came by."""

from __future__ import annotations

import msgspec

from edgeserve.tensors import Tensors


class OutputRegion(msgspec.Struct, frozen=True):
    """Where in a registered shared memory region an output shall be written."""

    region: str
    offset: int
    byte_size: int


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output the client wants: as binary, as JSON or in shared memory, or as its `classes` best
    classes."""

    name: str
    binary: bool
    classes: int = 0
    region: OutputRegion | None = None


class InferRequest(msgspec.Struct, frozen=True):
    """A decoded request. `inputs` may be views on the body. `timeout_s` None: the server's default,
    0: none. `priority` 1 is the highest, 0 the model's default. `allow_nan`: JSON may hold the tokens
    NaN and Infinity, which are not JSON."""

    inputs: Tensors
    rows: int
    outputs: tuple[RequestedOutput, ...]
    id: str | None = None
    timeout_s: float | None = None
    priority: int = 0
    allow_nan: bool = False
