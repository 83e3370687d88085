"""Which HTTP status and headers answer an error. docs/protocols.md has the same table."""

from __future__ import annotations

import math
from typing import Final

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
from edgeserve.serve.engine.flight import TooManyInFlight
from edgeserve.serve.http.response import RETRY, ErrorResponse, Headers, Refusal
from edgeserve.serve.metrics.reasons import reason_of
from edgeserve.serve.shm import SharedMemoryOff, UnknownRegion

_CHALLENGE: Final[Headers] = (("WWW-Authenticate", 'Bearer realm="edgeserve"'),)
_TABLE: Final[tuple[tuple[type[EdgeServeError], int, Headers], ...]] = (
    (InvalidInput, 400, ()),
    (InputFailed, 400, ()),
    (Unauthenticated, 401, _CHALLENGE),
    (Forbidden, 403, ()),
    (SharedMemoryOff, 403, ()),
    (ModelNotFound, 404, ()),
    (UnknownRegion, 404, ()),
    (ModelUnavailable, 503, RETRY),
    (QueueFull, 503, RETRY),
    (ShuttingDown, 503, RETRY),
    (TooManyInFlight, 503, RETRY),
)


def failure(error: EdgeServeError, *, logged: bool = False) -> ErrorResponse:
    """The answer to a request that failed; `logged`: as in Refusal."""
    refusal = refused(error)
    if refusal is not None:
        refusal.logged = logged
        return refusal
    if isinstance(
        error, DeviceLost | WrongNumbers
    ):  # and no candidate took over: another server may answer
        return ErrorResponse(503, str(error), RETRY)
    return ErrorResponse(504 if isinstance(error, DeadlineExceeded) else 500, str(error))


def refused(error: EdgeServeError) -> Refusal | None:
    """The answer to a request that is not served; None if the server itself failed."""
    reason = reason_of(error)
    if reason is None:
        return None
    for kind, status, headers in _TABLE:
        if isinstance(error, kind):
            if isinstance(error, QueueFull):
                headers = (("Retry-After", str(max(1, math.ceil(error.retry_s)))),)
            return Refusal(status, reason, str(error), headers)
    return None
