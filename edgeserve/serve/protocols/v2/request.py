"""An inference request of the Open Inference Protocol v2, over HTTP and gRPC."""

from __future__ import annotations

import msgspec

from edgeserve.serve.models.request import InferRequest


class OutputRegion(msgspec.Struct, frozen=True):
    """Where in a registered shared memory region an output is written; sizes in bytes."""

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


class V2Request(InferRequest, frozen=True):
    """A request, with how each of its `outputs` is wanted. `allow_nan`: JSON may hold the tokens NaN and
    Infinity, which are not JSON."""

    wanted: tuple[RequestedOutput, ...] = ()
    allow_nan: bool = False
