"""Which status an error is answered with, and as what it is counted; the table in docs/protocols.md is this
one."""

from __future__ import annotations

import math
from typing import Final

from edgeserve.errors import EdgeServeError, InvalidInput, ModelNotFound, ModelUnavailable
from edgeserve.serve.access import Forbidden, Unauthenticated
from edgeserve.serve.engine import DeadlineExceeded, QueueFull, ShuttingDown
from edgeserve.serve.flight import TooManyInFlight
from edgeserve.serve.http.response import RETRY, Headers, Refusal, Response
from edgeserve.serve.shm import SharedMemoryOff, UnknownRegion

_CHALLENGE: Final[Headers] = (("WWW-Authenticate", 'Bearer realm="edgeserve"'),)
_TABLE: Final[tuple[tuple[type[EdgeServeError], int, str, Headers], ...]] = (
    (InvalidInput, 400, "invalid", ()),
    (Unauthenticated, 401, "unauthenticated", _CHALLENGE),
    (Forbidden, 403, "forbidden", ()),
    (SharedMemoryOff, 403, "shared_memory_off", ()),
    (ModelNotFound, 404, "unknown_model", ()),
    (UnknownRegion, 404, "unknown_region", ()),
    (ModelUnavailable, 503, "unavailable", RETRY),
    (QueueFull, 503, "queue_full", RETRY),
    (ShuttingDown, 503, "draining", RETRY),
    (TooManyInFlight, 503, "in_flight", RETRY),
)


def failure(error: EdgeServeError, *, logged: bool = False) -> Response:
    """The answer that tells of an error; `logged`: as in Refusal."""
    refusal = refused(error)
    if refusal is not None:
        refusal.logged = logged
        return refusal
    return Response.error(504 if isinstance(error, DeadlineExceeded) else 500, str(error))


def refused(error: EdgeServeError) -> Refusal | None:
    """The answer to a request that is not served; None for an error that is the server's."""
    for kind, status, reason, headers in _TABLE:
        if isinstance(error, kind):
            if isinstance(error, QueueFull):
                headers = (("Retry-After", str(max(1, math.ceil(error.retry_s)))),)
            return Refusal(status, reason, str(error), headers)
    return None
