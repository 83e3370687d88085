"""From a call to its answer: the methods of services as grpc's handlers.

grpc calls them on threads of its pools; what touches models happens on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from edgeserve.errors import EdgeServeError
from edgeserve.serve.access.keys import AccessDenied, Role
from edgeserve.serve.engine import ShuttingDown
from edgeserve.serve.grpc.admission import PlacedMethod, key_in
from edgeserve.serve.grpc.errors import status_of, text_of
from edgeserve.serve.grpc.pool import Pools
from edgeserve.serve.grpc.receive_timeout import Arrivals
from edgeserve.serve.grpc.refusals import Refusals
from edgeserve.serve.grpc.service import (
    Ask,
    Exchange,
    GrpcService,
    Infer,
    OpenCall,
    OpenStream,
)

log = logging.getLogger(__name__)

# Years: what grpc reports if a client set no deadline.
_NO_DEADLINE_S: Final = 1e8


# Called with the path and the metadata of a call that infers, the call, and its error.
Traced = Callable[[str, Any, OpenCall, EdgeServeError | None], None]


class Handlers:
    """Makes the handlers, and counts the calls that are `open`: not answered, or not sent yet. Made on the event
    loop."""

    def __init__(
        self,
        pools: Pools,
        arrivals: Arrivals,
        refusals: Refusals,
        compress_bytes: int | None = None,
    ) -> None:
        """Answers of less than `compress_bytes` are not compressed; None: grpc compresses none."""
        self._loop = asyncio.get_running_loop()
        self._pools = pools
        self._arrivals = arrivals
        self._refusals = refusals
        self._compress_bytes = compress_bytes
        self.traced: Traced | None = None
        self._streams: set[OpenStream] = set()
        self._lock = threading.Lock()
        self._draining = False
        self.open = 0

    def of(self, service: GrpcService) -> dict[str, PlacedMethod]:
        """What answers the methods of a service, by their paths."""
        found = {}
        for method in service.methods:
            path = f"/{service.name}/{method.name}"
            handler, infers = self._handler(path, method)
            found[path] = PlacedMethod(handler, method.role, infers)
        return found

    def _handler(
        self, path: str, method: Ask | Infer | Exchange
    ) -> tuple[grpc.RpcMethodHandler, bool]:
        """And whether it infers."""
        if isinstance(method, Infer):
            return grpc.unary_unary_rpc_method_handler(self._inferring(path, method)), True
        if isinstance(method, Exchange):
            behaviour = self._pools.on_stream(self._exchanging(path, method))
            return grpc.stream_stream_rpc_method_handler(behaviour), False
        asking = self._asking(path, method)
        if method.role is Role.OPEN:
            placed = self._pools.on(self._pools.probes, _unread(asking))
        else:
            placed = self._pools.on(self._pools.control, self._arrivals.with_message(asking))
        return grpc.stream_unary_rpc_method_handler(placed), False

    def drain(self) -> None:
        """Streams end once they have answered; streams that come now are refused."""
        with self._lock:
            self._draining = True
            streams = list(self._streams)
        for stream in streams:
            stream.end(ShuttingDown("the server is shutting down"))

    def check_streams(self, admit: Callable[[str | None], None]) -> None:
        """End those whose key `admit` raises AccessDenied for; what they asked for is answered."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            try:
                admit(stream.key)
            except AccessDenied as error:
                stream.end(error)

    def _inferring(self, path: str, method: Infer) -> Callable[..., bytes]:
        start = method.start

        def infer(message: bytes, context: grpc.ServicerContext) -> bytes:
            call = start(message, remaining_s(context))
            if self._opened(context, call.left):
                call.wait()
            failed: EdgeServeError | None = None
            try:
                return self._sized(call.answer(), context)
            except EdgeServeError as error:
                failed = error
                self._refusals.note_error(error, path, context, logged=call.asked)
                return _abort(context, error)
            except Exception as error:  # noqa: BLE001 - the client gets it
                failed = _unforeseen(error)
                return _abort(context, failed)
            finally:
                if self.traced is not None:
                    self.traced(path, context.invocation_metadata(), call, failed)

        return infer

    def _exchanging(self, path: str, method: Exchange) -> Callable[..., Iterator[bytes]]:
        def exchange(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            metadata = context.invocation_metadata()

            def answered(error: EdgeServeError | None, call: OpenCall) -> None:
                if error is not None:
                    self._refusals.note_error(error, path, context, logged=call.asked)
                if self.traced is not None:
                    self.traced(path, metadata, call, error)

            key = key_in(metadata)
            stream = method.open(requests, lambda: remaining_s(context), key, answered)
            with self._lock:
                draining = self._draining
                if not draining:
                    self._streams.add(stream)
            if draining:
                error = ShuttingDown("the server is shutting down")
                self._refusals.note_error(error, path, context)
                _abort(context, error)
            try:
                if self._opened(context, stream.left):
                    for answer in stream.answers():
                        yield self._sized(answer, context)
                if stream.ended_by is not None:
                    _abort(context, stream.ended_by)
            finally:
                with self._lock:
                    self._streams.discard(stream)

        return exchange

    def _asking(self, path: str, method: Ask) -> Callable[..., bytes]:
        request_class: Any = method.request

        def ask(message: bytes, context: grpc.ServicerContext) -> bytes:
            self._opened(context, lambda: None)
            try:
                request = request_class.FromString(message)
            except DecodeError:
                code = grpc.StatusCode.INVALID_ARGUMENT
                self._refusals.note(code, "malformed", path, context)
                text = f"the message is not a valid {request_class.DESCRIPTOR.full_name}"
                context.abort(code, text)
            work: Any = method.handler(request)
            try:
                answer = asyncio.run_coroutine_threadsafe(work, self._loop)
            except RuntimeError:
                work.close()
                return _abort(context, ShuttingDown("the server is shutting down"))
            try:
                return self._sized(bytes(answer.result().SerializeToString()), context)
            except EdgeServeError as error:
                self._refusals.note_error(error, path, context)
                return _abort(context, error)
            except Exception as error:  # noqa: BLE001 - the client gets it
                return _abort(context, _unforeseen(error))

        return ask

    def _sized(self, answer: bytes, context: grpc.ServicerContext) -> bytes:
        """An answer that is about to be sent: as it is, where it is small."""
        if self._compress_bytes is not None and len(answer) < self._compress_bytes:
            context.disable_next_message_compression()
        return answer

    def _opened(self, context: grpc.ServicerContext, left: Callable[[], None]) -> bool:
        """Count the call until it has ended, when `left` is called; False when that was before now."""

        def ended() -> None:
            left()
            with self._lock:
                self.open -= 1

        with self._lock:
            self.open += 1
        if context.add_callback(ended):
            return True
        ended()
        return False


def _unread(behaviour: Callable[..., bytes]) -> Callable[..., bytes]:
    """A behaviour that does not wait for a message that says nothing."""
    return lambda messages, context: behaviour(b"", context)


def remaining_s(context: grpc.ServicerContext) -> float | None:
    """What the client's deadline leaves; None where it set none."""
    remaining = context.time_remaining()
    return None if remaining is None or remaining > _NO_DEADLINE_S else float(remaining)


def _abort(context: grpc.ServicerContext, error: EdgeServeError) -> bytes:
    context.abort(status_of(error), text_of(error))
    raise AssertionError("abort raises")


def _unforeseen(error: Exception) -> EdgeServeError:
    log.error("a call failed", exc_info=error)
    return EdgeServeError("the server failed", cause=type(error).__name__)
