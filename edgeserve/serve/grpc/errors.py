"""Which gRPC status an error is. The text is the error's own, or nothing for one that nobody foresaw."""

from __future__ import annotations

from typing import Final

import grpc

from edgeserve.errors import EdgeServeError, InvalidInput, ModelNotFound, ModelUnavailable
from edgeserve.serve.engine import DeadlineExceeded, QueueFull, ShuttingDown


class Canceled(EdgeServeError):
    """The client left before its answer."""


class NotAllowed(EdgeServeError):
    """This server does not let clients do that."""


class NotSupported(EdgeServeError):
    """The method is known, and this server cannot do it."""


_CODES: Final[tuple[tuple[type[EdgeServeError], grpc.StatusCode], ...]] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (ModelNotFound, grpc.StatusCode.NOT_FOUND),
    (ModelUnavailable, grpc.StatusCode.UNAVAILABLE),
    (QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ShuttingDown, grpc.StatusCode.UNAVAILABLE),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Canceled, grpc.StatusCode.CANCELLED),
    (NotAllowed, grpc.StatusCode.PERMISSION_DENIED),
    (NotSupported, grpc.StatusCode.UNIMPLEMENTED),
)


def status_of(error: EdgeServeError) -> grpc.StatusCode:
    return next(
        (code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL
    )
