"""The gRPC status of an error, and its text, cut to what fits beside a status."""

from __future__ import annotations

from typing import Final

import grpc

from edgeserve.errors import EdgeServeError
from edgeserve.serve.metrics.reasons import meaning_of


class Canceled(EdgeServeError):
    """The client left before its answer."""


class NotSupported(EdgeServeError):
    """The method is known, but this server does not support it."""


# A status travels in trailing metadata, which peers bound at a few kilobytes.
_TEXT: Final = 1_000


def text_of(error: EdgeServeError) -> str:
    return str(error)[:_TEXT]


def status_of(error: EdgeServeError) -> grpc.StatusCode:
    if isinstance(error, Canceled):
        return grpc.StatusCode.CANCELLED
    if isinstance(error, NotSupported):
        return grpc.StatusCode.UNIMPLEMENTED
    return grpc.StatusCode[meaning_of(error).grpc]
