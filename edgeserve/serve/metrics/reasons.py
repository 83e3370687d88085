"""Why requests are not served: the word that metrics and logs have for each error, and its status in each protocol.

docs/protocols.md has the same table.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from edgeserve.errors import (
    DependencyMissing,
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
from edgeserve.serve.engine.in_flight import TooManyBodies, TooManyInFlight
from edgeserve.serve.shm import SharedMemoryOff, UnknownRegion


class Meaning(NamedTuple):
    """What an error says to those outside. `reason` None: the failure is the server's own; `grpc` names a status."""

    reason: str | None
    http: int
    grpc: str


_MEANINGS: Final[dict[type[EdgeServeError], Meaning]] = {
    InvalidInput: Meaning("invalid", 400, "INVALID_ARGUMENT"),
    InputFailed: Meaning("invalid", 400, "INVALID_ARGUMENT"),
    Unauthenticated: Meaning("unauthenticated", 401, "UNAUTHENTICATED"),
    Forbidden: Meaning("forbidden", 403, "PERMISSION_DENIED"),
    # What reading the request needs is not installed here.
    DependencyMissing: Meaning("unsupported", 501, "UNIMPLEMENTED"),
    SharedMemoryOff: Meaning("shared_memory_off", 403, "PERMISSION_DENIED"),
    ModelNotFound: Meaning("unknown_model", 404, "NOT_FOUND"),
    UnknownRegion: Meaning("unknown_region", 404, "NOT_FOUND"),
    ModelUnavailable: Meaning("unavailable", 503, "UNAVAILABLE"),
    QueueFull: Meaning("queue_full", 503, "RESOURCE_EXHAUSTED"),
    ShuttingDown: Meaning("draining", 503, "UNAVAILABLE"),
    TooManyInFlight: Meaning("in_flight", 503, "RESOURCE_EXHAUSTED"),
    TooManyBodies: Meaning("bodies", 503, "RESOURCE_EXHAUSTED"),
    # And no candidate took over: another server may answer.
    DeviceLost: Meaning(None, 503, "UNAVAILABLE"),
    WrongNumbers: Meaning(None, 503, "UNAVAILABLE"),
    DeadlineExceeded: Meaning(None, 504, "DEADLINE_EXCEEDED"),
}
_FAILED: Final = Meaning(None, 500, "INTERNAL")


def meaning_of(error: EdgeServeError) -> Meaning:
    """What an error means, by the nearest of its classes that means anything."""
    found = (_MEANINGS[kind] for kind in type(error).__mro__ if kind in _MEANINGS)
    return next(found, _FAILED)


def failure_of(error: EdgeServeError) -> str:
    """The word for an error that ended a request which a model had taken: one of the recorder's FAILURES."""
    if isinstance(error, DeadlineExceeded):
        return "timeout"
    return meaning_of(error).reason or "engine"
