"""The gRPC status of an error, and its text, cut to what fits beside a status."""

from __future__ import annotations

from typing import Final

import grpc

from edgeserve.errors import (
    DeviceLost,
    EdgeServeError,
    InputFailed,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    WrongNumbers,
)
from edgeserve.serve.access.keys import Forbidden, Unauthenticated
from edgeserve.serve.engine import DeadlineExceeded, QueueFull, ShuttingDown
from edgeserve.serve.engine.flight import TooManyBodies, TooManyInFlight
from edgeserve.serve.shm import SharedMemoryOff, UnknownRegion


class Canceled(EdgeServeError):
    """The client left before its answer."""


class NotSupported(EdgeServeError):
    """The method is known, but this server does not support it."""


_CODES: Final[tuple[tuple[type[EdgeServeError], grpc.StatusCode], ...]] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (InputFailed, grpc.StatusCode.INVALID_ARGUMENT),
    (ModelNotFound, grpc.StatusCode.NOT_FOUND),
    (ModelUnavailable, grpc.StatusCode.UNAVAILABLE),
    (DeviceLost, grpc.StatusCode.UNAVAILABLE),
    (WrongNumbers, grpc.StatusCode.UNAVAILABLE),
    (QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooManyInFlight, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooManyBodies, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ShuttingDown, grpc.StatusCode.UNAVAILABLE),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Canceled, grpc.StatusCode.CANCELLED),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (SharedMemoryOff, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownRegion, grpc.StatusCode.NOT_FOUND),
    (NotSupported, grpc.StatusCode.UNIMPLEMENTED),
)


# A status travels in trailing metadata, which peers bound at a few kilobytes.
_TEXT: Final = 1_000


def text_of(error: EdgeServeError) -> str:
    return str(error)[:_TEXT]


def status_of(error: EdgeServeError) -> grpc.StatusCode:
    return next(
        (code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL
    )
