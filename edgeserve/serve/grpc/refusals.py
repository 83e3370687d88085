"""Calls that are refused: counted by code and reason, and logged where requests are."""

from __future__ import annotations

import logging
from urllib.parse import unquote

import grpc

from edgeserve.errors import EdgeServeError
from edgeserve.serve.grpc.errors import NotSupported, status_of
from edgeserve.serve.metrics.reasons import meaning_of
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.process import logs


class Refusals:
    """Counts and logs them; on any thread."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def note(
        self,
        code: grpc.StatusCode,
        reason: str,
        method: str,
        context: grpc.ServicerContext,
        *,
        logged: bool = False,
    ) -> None:
        """Note a call, or a request in a stream, that is not served. `logged`: the access log has its line."""
        self._recorder.refuse_grpc(code.name, reason)
        if not logged and logs.ACCESS.isEnabledFor(logging.INFO):
            logs.log_refused("grpc", "POST", method, code.name, reason, peer_of(context))

    def note_error(
        self,
        error: EdgeServeError,
        method: str,
        context: grpc.ServicerContext,
        *,
        logged: bool = False,
    ) -> None:
        """As `note`, for an error; not if the server failed or the client left."""
        reason = "unsupported" if isinstance(error, NotSupported) else meaning_of(error).reason
        if reason is not None:
            self.note(status_of(error), reason, method, context, logged=logged)


def peer_of(context: grpc.ServicerContext) -> str:
    """The client's address, without the port."""
    address = unquote(str(context.peer()))
    return address.partition(":")[2].rpartition(":")[0].strip("[]") or address
