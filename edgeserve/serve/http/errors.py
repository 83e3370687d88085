"""The HTTP answer to an error, with the headers that its status asks for."""

from __future__ import annotations

import math

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import QueueFull
from edgeserve.serve.http.response import RETRY, ErrorResponse, Headers, Refusal
from edgeserve.serve.metrics.reasons import meaning_of


def failure(error: EdgeServeError, *, logged: bool = False) -> ErrorResponse:
    """The answer to a request that failed; `logged`: as in Refusal."""
    refusal = refused(error)
    if refusal is None:
        status = meaning_of(error).http
        found = ErrorResponse(status, str(error), _headers(error, status))
        found.kind = type(error)
        return found
    refusal.logged = logged
    return refusal


def refused(error: EdgeServeError) -> Refusal | None:
    """The answer to a request that is not served; None if the server itself failed."""
    reason, status, _ = meaning_of(error)
    if reason is None:
        return None
    found = Refusal(status, reason, str(error), _headers(error, status))
    found.kind = type(error)
    return found


def _headers(error: EdgeServeError, status: int) -> Headers:
    if status == 401:
        return (("WWW-Authenticate", 'Bearer realm="edgeserve"'),)
    if isinstance(error, QueueFull):
        return (("Retry-After", str(max(1, math.ceil(error.retry_s)))),)
    return RETRY if status == 503 else ()
