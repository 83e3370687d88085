"""From a call to its answer: the methods of inference.GRPCInferenceService as grpc's handlers.

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
from edgeserve.serve.access.keys import AccessDenied
from edgeserve.serve.engine import ShuttingDown
from edgeserve.serve.grpc.arriving import Arrivals
from edgeserve.serve.grpc.door import key_in
from edgeserve.serve.grpc.errors import status_of, text_of
from edgeserve.serve.grpc.pool import Pools
from edgeserve.serve.grpc.refusals import Refusals
from edgeserve.serve.protocols.v2.grpc.about import About
from edgeserve.serve.protocols.v2.grpc.calls import Inference, Inferences
from edgeserve.serve.protocols.v2.grpc.stream import Stream
from edgeserve.wire import SERVICE, messages

log = logging.getLogger(__name__)

INFER: Final = "ModelInfer"
# What anybody may ask.
OPEN: Final = frozenset({"ServerLive", "ServerReady"})
_STREAM: Final = "ModelStreamInfer"
_INFER_PATH: Final = f"/{SERVICE}/{INFER}"
_STREAM_PATH: Final = f"/{SERVICE}/{_STREAM}"
# Years: grpc says so where a client set no deadline.
_NO_DEADLINE_S: Final = 1e8


class Service:
    """The methods, and how many of their calls are open: not answered, or not sent yet."""

    def __init__(
        self,
        inferences: Inferences,
        about: About,
        pools: Pools,
        arrivals: Arrivals,
        refusals: Refusals,
        compress_bytes: int | None = None,
    ) -> None:
        """Answers of less than `compress_bytes` are not compressed; None: grpc compresses none."""
        self._inferences = inferences
        self._about = about
        self._pools = pools
        self._arrivals = arrivals
        self._refusals = refusals
        self._compress_bytes = compress_bytes
        self._streams: set[Stream] = set()
        self._lock = threading.Lock()
        self._draining = False
        self.open = 0

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """By the methods' names."""
        built = {}
        for method in messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            if method.name == INFER:
                handler = grpc.unary_unary_rpc_method_handler(self._infer)
            elif method.name == _STREAM:
                handler = grpc.stream_stream_rpc_method_handler(self._pools.on_stream(self._stream))
            else:
                request = getattr(messages, method.input_type.name)
                name = f"/{SERVICE}/{method.name}"
                behaviour = self._telling(name, getattr(self._about, method.name), request)
                if method.name in OPEN:
                    placed = self._pools.on(self._pools.probes, _unread(behaviour))
                else:
                    reading = self._arrivals.with_message(behaviour)
                    placed = self._pools.on(self._pools.control, reading)
                handler = grpc.stream_unary_rpc_method_handler(placed)
            built[method.name] = handler
        return built

    def drain(self) -> None:
        """Streams end once they have answered; calls that come now are refused."""
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

    def _infer(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        call = self._inferences.start(message, remaining_s(context), streamed=False)
        if self._opened(context, call.left):
            call.wait()
        try:
            return self._sized(call.answer(), context)
        except EdgeServeError as error:
            self._refusals.note_error(error, _INFER_PATH, context, logged=call.asked)
            return _abort(context, error)
        except Exception as error:  # noqa: BLE001 - the client is told
            return _abort(context, _unforeseen(error))

    def _stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        key = key_in(context.invocation_metadata())

        def refused(error: EdgeServeError, call: Inference) -> None:
            self._refusals.note_error(error, _STREAM_PATH, context, logged=call.asked)

        stream = Stream(self._inferences, requests, lambda: remaining_s(context), key, refused)
        with self._lock:
            draining = self._draining
            if not draining:
                self._streams.add(stream)
        if draining:
            error = ShuttingDown("the server is shutting down")
            self._refusals.note_error(error, _STREAM_PATH, context)
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

    def _telling(self, path: str, method: Any, request_class: Any) -> Callable[..., bytes]:
        def behaviour(message: bytes, context: grpc.ServicerContext) -> bytes:
            self._opened(context, lambda: None)
            try:
                request = request_class.FromString(message)
            except DecodeError:
                code = grpc.StatusCode.INVALID_ARGUMENT
                self._refusals.note(code, "malformed", path, context)
                context.abort(code, f"the message is no {request_class.DESCRIPTOR.full_name}")
            work = method(request)
            try:
                answer = asyncio.run_coroutine_threadsafe(work, self._inferences.loop)
            except RuntimeError:
                work.close()
                return _abort(context, ShuttingDown("the server is shutting down"))
            try:
                return self._sized(bytes(answer.result().SerializeToString()), context)
            except EdgeServeError as error:
                self._refusals.note_error(error, path, context)
                return _abort(context, error)
            except Exception as error:  # noqa: BLE001 - the client is told
                return _abort(context, _unforeseen(error))

        return behaviour

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
    """A behaviour whose message says nothing, so that nobody waits for it."""
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
