"""Admission: every call of every service passes here before it gets a thread, and before its message is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grpc
import msgspec

from edgeserve.serve.access.keys import AccessDenied, Role, key_of
from edgeserve.serve.grpc.errors import status_of, text_of
from edgeserve.serve.grpc.pool import Pools
from edgeserve.serve.grpc.refusals import Refusals
from edgeserve.serve.metrics.reasons import meaning_of

# Raises AccessDenied for a key, or the lack of one, that does not give the role.
Admit = Callable[[Role, str | None], None]


class PlacedMethod(msgspec.Struct, frozen=True):
    """One method behind the door: how grpc calls it, which role it needs, and whether it waits for the engine."""

    handler: Any
    role: Role
    infers: bool = False


class Door(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio is untyped
    """Finds a call's method, or a handler that says why not. grpc asks on its one serving thread.

    `seen` counts the calls that came.
    """

    def __init__(
        self,
        methods: Mapping[str, PlacedMethod],
        admit: Admit,
        pools: Pools,
        max_inferences: int,
        refusals: Refusals,
    ) -> None:
        self._methods = methods
        self._admit = admit
        self._pools = pools
        self._max_inferences = max_inferences
        self._refusals = refusals
        self._open = True
        self.seen = 0

    def close(self) -> None:
        """From now on admit only calls that need no role."""
        self._open = False

    def service(self, details: Any) -> Any:
        self.seen += 1
        path = details.method
        method = self._methods.get(path)
        if method is None:
            code = grpc.StatusCode.UNIMPLEMENTED
            return self._refusal(path, code, "unknown_method", "Method not found!")
        if method.role is not Role.OPEN:
            if not self._open:
                code = grpc.StatusCode.UNAVAILABLE
                return self._refusal(path, code, "draining", "the server is shutting down")
            try:
                self._admit(method.role, key_in(details.invocation_metadata))
            except AccessDenied as error:
                reason = meaning_of(error).reason or "forbidden"
                return self._refusal(path, status_of(error), reason, text_of(error))
        if method.infers and self._pools.infer.calls >= self._max_inferences:
            text = f"{self._max_inferences} calls are queued or running: try again later"
            return self._refusal(path, grpc.StatusCode.RESOURCE_EXHAUSTED, "calls", text)
        return method.handler

    def _refusal(self, path: str, code: grpc.StatusCode, reason: str, text: str) -> Any:
        def refuse(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            self._refusals.note(code, reason, path, context)
            context.abort(code, text)
            raise AssertionError("abort raises")

        # Of the four kinds the one that waits for no message.
        return grpc.stream_unary_rpc_method_handler(self._pools.on(self._pools.refusals, refuse))


def key_in(metadata: Iterable[Any]) -> str | None:
    """The key in `authorization: Bearer KEY` or `x-api-key: KEY`."""
    found = {name: value for name, value in metadata if isinstance(value, str)}
    return key_of(found.get("authorization"), found.get("x-api-key"))
