"""Inference over gRPC, whatever the protocol: decoded on the thread that received the message, run from the event
loop, and encoded on that thread again. What the bytes mean is a MessageCodec's (`protocols/codec.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from edgeserve.errors import EdgeServeError, InferenceFailed, InvalidInput
from edgeserve.serve.control import Control
from edgeserve.serve.engine import DeadlineExceeded, Mailbox, Outcome, Pending, ShuttingDown
from edgeserve.serve.engine.in_flight import InFlight, TooManyBodies
from edgeserve.serve.grpc.errors import Canceled
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.codec import Decoded, MessageCodec
from edgeserve.serve.protocols.threads import shortened
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory, SharedMemoryOff, UnknownRegion

log = logging.getLogger(__name__)

_CHECK_S: Final = 5.0
# Bytes of a message; decoding a smaller one takes less time than a change of threads.
_SMALL: Final = 16_384
_INVALID: Final = (InvalidInput, UnknownRegion, SharedMemoryOff)

Start = Callable[[bytes, float | None], "InferenceCall"]


@dataclass(frozen=True)
class ServedCalls:
    """One server, as the gRPC services of protocols see it. `model_control`: clients may load and unload models;
    `changed` is called after they did."""

    repository: ModelRepository
    control: Control
    shm: SharedMemory
    limits: Limits
    inferences: Inferences
    model_control: bool
    changed: Callable[[], None]


class Inferences:
    """Starts inferences on the event loop; made there, used from any thread. Owns its mailbox."""

    def __init__(
        self,
        repository: ModelRepository,
        flight: InFlight,
        loop: asyncio.AbstractEventLoop,
        messages_bytes: int,
        *,
        traced: bool = False,
    ) -> None:
        """`messages_bytes` bounds the large messages that are held at one time."""
        self.traced = traced
        self.repository = repository
        self.flight = flight
        self.loop = loop
        self._messages_bytes = messages_bytes
        self._mailbox = Mailbox(loop)
        self._lock = threading.Lock()
        self._held = 0  # bytes of large messages

    def starting(self, codec: MessageCodec[Any, Any, Any]) -> Start:
        """What begins with one kind of serialized message and the seconds that are left for it.

        It never raises: what is wrong comes with the answer.
        """

        def start(message: bytes, remaining_s: float | None) -> InferenceCall:
            call = InferenceCall(self, codec, message)
            if remaining_s is not None:
                call.deadline = time.monotonic() + remaining_s
            if len(message) >= _SMALL:
                if not self._hold(len(message)):
                    call.refuse(TooManyBodies("too many large messages at one time"))
                    return call
                call.held = len(message)
                call.decode()
            try:
                self._mailbox.post(call.run)
            except RuntimeError:  # the loop has ended
                call.finish(ShuttingDown("the server is shutting down"))
            return call

        return start

    def _hold(self, size: int) -> bool:
        with self._lock:
            if self._held + size > self._messages_bytes:
                return False
            self._held += size
            return True

    def release(self, size: int) -> None:
        """A call that held so much has its answer."""
        with self._lock:
            self._held -= size

    def close(self) -> None:
        """To be called when no call can come any more."""
        self._mailbox.close()


class InferenceCall:
    """One call. `run` and `finish` happen on the loop, `wait` and `answer` on the caller's thread.

    Small messages are decoded and encoded on the loop, too: two threads that take turns with Python's lock
    cost more than the work. Large ones are left to the caller's thread.
    """

    __slots__ = (
        "_answer", "_codec", "_decoded", "_flies", "_lock", "_message", "_name", "_owner",
        "_pending", "_refusal", "_request", "asked", "asked_ns", "began_ns", "deadline", "held", "id", "model", "result",
    )  # fmt: skip

    def __init__(
        self, owner: Inferences, codec: MessageCodec[Any, Any, Any], message: bytes
    ) -> None:
        self._owner = owner
        self._codec = codec
        self._message = message
        self._lock = threading.Lock()
        self._lock.acquire()
        self._decoded: Decoded | None = None
        self._refusal: EdgeServeError | None = None
        self._name = ""
        self.model: ServedModel | None = None
        self.began_ns = time.time_ns() if owner.traced else 0
        self.asked_ns = 0  # when the model was asked, if somebody traces
        self._request: InferRequest | None = None
        self._flies = False  # counted as in flight
        self._pending: Pending | None = None
        self._answer: bytes | None = None
        self.deadline: float | None = None
        self.held = 0  # bytes of its message that count
        self.id = ""
        self.asked = False  # the model was asked: it logs the outcome
        self.result: Outcome | EdgeServeError | None = None

    def decode(self) -> None:
        """Never raises: a message that does not fit is refused by `run`."""
        try:
            parsed = self._codec.parse(self._message)
            self.id, self._name = parsed.id, parsed.model
            self._decoded = self._codec.decode(parsed)
        except EdgeServeError as error:
            self._refusal = error
        except Exception as error:  # noqa: BLE001 - the client gets it
            self._refusal = _unforeseen(error)

    def refuse(self, error: EdgeServeError) -> None:
        """Answer with an error before the message is read."""
        self._message = b""
        self.finish(error)

    def run(self) -> None:
        """Find the model and hand it the request. Never raises."""
        try:
            self._run()
        except EdgeServeError as error:
            if isinstance(error, _INVALID):
                with contextlib.suppress(EdgeServeError):
                    self._owner.repository.find(self._name).recorder.failed("invalid")
            self.finish(error)
        except Exception as error:  # noqa: BLE001 - the client gets it
            self.finish(_unforeseen(error))

    def _run(self) -> None:
        if self.result is not None:
            return
        remaining_s = None
        if self.deadline is not None:
            remaining_s = self.deadline - time.monotonic()
            if remaining_s <= 0:
                raise DeadlineExceeded("the deadline passed before the request was run")
        if self._decoded is None and self._refusal is None:
            self.decode()
        if self._refusal is not None:
            raise self._refusal
        decoded = self._decoded
        assert decoded is not None
        self.model = model = self._owner.repository.find(decoded.model, decoded.version)
        flight = self._owner.flight
        if not self._flies and flight.count >= flight.limit:
            model.recorder.failed("in_flight")
            raise flight.refusal()
        if decoded.binds_long(model):
            self._fly()
            self._bind_apart(decoded, model, remaining_s)
        else:
            self._ask(model, self._codec.bind(decoded, model, remaining_s))

    def _bind_apart(self, decoded: Decoded, model: ServedModel, remaining_s: float | None) -> None:
        """Bind on a thread, then ask the model. The time on the thread counts for the deadline."""
        began = time.perf_counter()

        def bind() -> InferRequest | None:
            if self.result is not None:  # its client has left
                return None
            request: InferRequest = self._codec.bind(decoded, model, remaining_s)
            return request

        def bound(done: asyncio.Future[InferRequest | None]) -> None:
            if self.result is not None or done.cancelled():
                self.finish(ShuttingDown("the server is shutting down"))
                return
            try:
                request = done.result()
                assert request is not None
                if self._owner.repository.find(decoded.model, decoded.version) is not model:
                    self.run()  # it was replaced meanwhile
                    return
                self._ask(model, shortened(request, model, time.perf_counter() - began))
            except EdgeServeError as error:
                if isinstance(error, _INVALID):
                    model.recorder.failed("invalid")
                self.finish(error)
            except Exception as error:  # noqa: BLE001 - the client gets it
                self.finish(_unforeseen(error))

        self._owner.loop.run_in_executor(None, bind).add_done_callback(bound)

    def _ask(self, model: ServedModel, request: InferRequest) -> None:
        self._request = request
        self.asked = True
        if self._owner.traced:
            self.asked_ns = time.time_ns()
        self._pending = model.infer(request, self._ran)
        if self.result is None:
            self._fly()

    def _fly(self) -> None:
        if not self._flies:
            self._owner.flight.count += 1
            self._flies = True

    def finish(self, result: Outcome | EdgeServeError) -> None:
        """Wake the caller; only the first result counts."""
        if self.result is None:
            self.result = result
            if self._flies:
                self._owner.flight.count -= 1
            if self.held:
                self._owner.release(self.held)
            self._lock.release()

    def wait(self) -> None:
        while not self._lock.acquire(timeout=_CHECK_S):
            if self._owner.loop.is_closed():
                self.finish(ShuttingDown("the server is shutting down"))

    def left(self) -> None:
        """The client is gone or has its answer; any thread may say so."""
        if self.result is None:
            with contextlib.suppress(RuntimeError):
                self._owner.loop.call_soon_threadsafe(self._cancel)

    def answer(self) -> bytes:
        """The serialized answer. Raises the error that it failed with."""
        if self._answer is not None:
            return self._answer
        result = self.result
        if isinstance(result, EdgeServeError):
            raise result
        assert result is not None
        return self._encode(result)

    @property
    def rows(self) -> int:
        """Of the request; 0 before it was read."""
        return self._request.rows if self._request is not None else 0

    def _encode(self, result: Outcome) -> bytes:
        assert self.model is not None
        return self._codec.encode(self._request, self.model, result)

    def _ran(self, result: Outcome | EdgeServeError) -> None:
        if isinstance(result, Outcome):
            try:
                if self._codec.written_bytes(self._request, result.outputs) < _SMALL:
                    self._answer = self._encode(result)
            except EdgeServeError as error:
                result = error
            except Exception as error:  # noqa: BLE001 - the client gets it
                result = _unforeseen(error)
        self.finish(result)

    def _cancel(self) -> None:
        if self.result is not None:
            return
        pending, model = self._pending, self.model
        if pending is not None and model is not None and not pending.settled:
            model.cancel(pending)
        self.finish(Canceled("the client has left"))


def _unforeseen(error: Exception) -> EdgeServeError:
    log.error("a call failed", exc_info=error)
    return InferenceFailed("the server failed", cause=type(error).__name__)
