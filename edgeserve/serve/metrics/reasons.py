"""Why requests are refused, in a few words that metrics and logs share."""

from __future__ import annotations

from typing import Final

from edgeserve.errors import (
    EdgeServeError,
    InputFailed,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
)
from edgeserve.serve.access.keys import Forbidden, Unauthenticated
from edgeserve.serve.engine import DeadlineExceeded, QueueFull, ShuttingDown
from edgeserve.serve.engine.flight import TooManyBodies, TooManyInFlight
from edgeserve.serve.shm import SharedMemoryOff, UnknownRegion

_REASONS: Final[tuple[tuple[type[EdgeServeError], str], ...]] = (
    (InvalidInput, "invalid"),
    (InputFailed, "invalid"),
    (Unauthenticated, "unauthenticated"),
    (Forbidden, "forbidden"),
    (SharedMemoryOff, "shared_memory_off"),
    (ModelNotFound, "unknown_model"),
    (UnknownRegion, "unknown_region"),
    (ModelUnavailable, "unavailable"),
    (QueueFull, "queue_full"),
    (ShuttingDown, "draining"),
    (TooManyInFlight, "in_flight"),
    (TooManyBodies, "bodies"),
)


def reason_of(error: EdgeServeError) -> str | None:
    """The word for an error that says a request is not served; None for one that is the server's own, or
    the client's leaving."""
    return next((word for kind, word in _REASONS if isinstance(error, kind)), None)


def failure_of(error: EdgeServeError) -> str:
    """The word for an error that ended a request which a model had taken: one of the recorder's FAILURES."""
    if isinstance(error, DeadlineExceeded):
        return "timeout"
    return reason_of(error) or "engine"
