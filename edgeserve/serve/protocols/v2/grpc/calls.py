"""One inference of a gRPC client: decoded on the thread that received it, run from the event loop, and
encoded on that thread again. Nothing here knows how the call came in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from typing import Final

from edgeserve.errors import EdgeServeError, InferenceFailed, InvalidInput
from edgeserve.serve.engine import DeadlineExceeded, Mailbox, Outcome, Pending, ShuttingDown
from edgeserve.serve.engine.flight import InFlight, TooManyBodies
from edgeserve.serve.grpc.errors import Canceled
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.protocols.v2.classes import Classes
from edgeserve.serve.protocols.v2.codec import no_sequences
from edgeserve.serve.protocols.v2.grpc import codec
from edgeserve.serve.protocols.v2.request import OutputRegion, RequestedOutput, V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory, SharedMemoryOff, UnknownRegion
from edgeserve.tensors import Array
from edgeserve.wire import binary

log = logging.getLogger(__name__)

_CHECK_S: Final = 5.0
# Bytes of a message: up to that it takes less time than it takes to change threads.
_SMALL: Final = 16_384
_INVALID: Final = (InvalidInput, UnknownRegion, SharedMemoryOff)


class Inferences:
    """Starts inferences on the event loop; made there, used from any thread. Owns its mailbox."""

    def __init__(
        self,
        repository: ModelRepository,
        shm: SharedMemory,
        flight: InFlight,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
    ) -> None:
        self.repository = repository
        self.shm = shm
        self.flight = flight
        self.loop = loop
        self.limits = limits
        self._mailbox = Mailbox(loop)
        self._lock = threading.Lock()
        self._held = 0  # bytes of large messages
        self._classes: weakref.WeakKeyDictionary[ServedModel, Classes] = weakref.WeakKeyDictionary()

    def start(
        self, message: bytes, remaining_s: float | None = None, *, streamed: bool = False
    ) -> Inference:
        """Begin with a serialized ModelInferRequest that `remaining_s` are left for.

        Never raises: what is wrong comes with the answer.
        """
        call = Inference(self, message, streamed=streamed)
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

    def classes_of(self, model: ServedModel) -> Classes:
        """Made once for each model."""
        classes = self._classes.get(model)
        if classes is None:
            classes = self._classes[model] = Classes(model.interface, model.class_names)
        return classes

    def _hold(self, size: int) -> bool:
        with self._lock:
            if self._held + size > self.limits.bodies_bytes:
                return False
            self._held += size
            return True

    def release(self, size: int) -> None:
        """A call that held so much has its answer."""
        with self._lock:
            self._held -= size

    def close(self) -> None:
        """When no call can come any more."""
        self._mailbox.close()


class Inference:
    """One call. `run` and `finish` happen on the loop, `wait` and `answer` on the caller's thread.

    What is small is decoded and encoded on the loop, too: two threads that take turns with Python's lock
    cost more than the work. What is large is left to the caller's thread.
    """

    __slots__ = (
        "_answer",
        "_decoded",
        "_flies",
        "_lock",
        "_message",
        "_model",
        "_name",
        "_owner",
        "_pending",
        "_refusal",
        "_request",
        "_streamed",
        "asked",
        "deadline",
        "held",
        "id",
        "result",
    )

    def __init__(self, owner: Inferences, message: bytes, *, streamed: bool) -> None:
        self._owner = owner
        self._message = message
        self._streamed = streamed
        self._lock = threading.Lock()
        self._lock.acquire()
        self._decoded: codec.Decoded | None = None
        self._refusal: EdgeServeError | None = None
        self._name = ""
        self._model: ServedModel | None = None
        self._request: V2Request | None = None
        self._flies = False  # counted as in flight
        self._pending: Pending | None = None
        self._answer: bytes | None = None
        self.deadline: float | None = None
        self.held = 0  # bytes of its message that count
        self.id = ""
        self.asked = False  # the model was, which logs what becomes of it
        self.result: Outcome | EdgeServeError | None = None

    def decode(self) -> None:
        """Never raises: a message that does not fit is refused by `run`."""
        try:
            parsed, blobs = codec.parse(self._message)
            self.id, self._name = parsed.id, parsed.model_name
            self._decoded = codec.decode(parsed, blobs, self._owner.limits.elements)
        except EdgeServeError as error:
            self._refusal = error
        except Exception as error:  # noqa: BLE001 - the client is told
            self._refusal = _unforeseen(error)

    def refuse(self, error: EdgeServeError) -> None:
        """Answer before anything is done about it."""
        self._message = b""
        self.finish(error)

    def run(self) -> None:
        """Find the model and hand it the request. Never raises."""
        try:
            self._run()
        except EdgeServeError as error:
            if isinstance(error, _INVALID):
                with contextlib.suppress(EdgeServeError):
                    self._owner.repository.find(self._name).metrics.failed("invalid")
            self.finish(error)
        except Exception as error:  # noqa: BLE001 - the client is told
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
        self._model = model = self._owner.repository.find(decoded.model, decoded.version)
        if decoded.in_sequence and model.keeps_state:
            raise no_sequences()
        flight = self._owner.flight
        if flight.count >= flight.limit:
            model.metrics.failed("in_flight")
            raise flight.refusal()
        self._request = codec.bind(
            decoded, model.interface, self._read_regions(decoded), remaining_s
        )
        self.asked = True
        self._pending = model.infer(self._request, self._ran)
        if self.result is None:
            flight.count += 1
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
        """The serialized ModelInferResponse. Raises the error that it failed with."""
        if self._answer is not None:
            return self._answer
        result = self.result
        if isinstance(result, EdgeServeError):
            raise result
        assert result is not None
        return self._encode(result)

    def _encode(self, result: Outcome) -> bytes:
        model, request = self._model, self._request
        assert model is not None
        assert request is not None
        head = codec.response_head(
            model.name, model.version, result.candidate, final=self._streamed
        )
        classes = self._owner.classes_of(model)
        return codec.encode(head, request, result.outputs, model.interface, classes)

    def _ran(self, result: Outcome | EdgeServeError) -> None:
        if isinstance(result, Outcome):
            try:
                self._write_regions(result)
                size = sum([binary.content_bytes(result.outputs[w.name]) for w in self._wanted()])
                limit = self._owner.limits.output_bytes
                if size > limit:
                    raise InvalidInput(f"the outputs are {size} bytes, at most {limit} are sent")
                if size < _SMALL:
                    self._answer = self._encode(result)
            except EdgeServeError as error:
                result = error
            except Exception as error:  # noqa: BLE001 - the client is told
                result = _unforeseen(error)
        self.finish(result)

    def _cancel(self) -> None:
        if self.result is not None:
            return
        pending, model = self._pending, self._model
        if pending is not None and model is not None and not pending.settled:
            model.cancel(pending)
        self.finish(Canceled("the client has left"))

    def _wanted(self) -> tuple[RequestedOutput, ...]:
        return () if self._request is None else self._request.wanted

    def _regions(self) -> dict[str, OutputRegion]:
        return {w.name: w.region for w in self._wanted() if w.region is not None}

    def _read_regions(self, decoded: codec.Decoded) -> dict[str, Array]:
        """The inputs that lie in shared memory; outputs that go there must find room."""
        shm = self._owner.shm
        for wanted in decoded.outputs:
            if wanted.region is not None:
                region = wanted.region
                shm.check_room(region.region, region.offset, region.byte_size)
        tensors = {}
        for given in decoded.inputs:
            if given.region is not None:
                region, most = given.region, self._owner.limits.body_bytes
                binary.check_size(given.spec, given.shape, region.byte_size)
                if given.spec.dtype == "BYTES" and region.byte_size > most:
                    raise InvalidInput(
                        f"input '{given.spec.name}': expected at most {most} bytes, "
                        f"got {region.byte_size}"
                    )
                data = shm.read(region.region, region.offset, region.byte_size)
                tensors[given.spec.name] = binary.from_bytes(given.spec, given.shape, data)
        return tensors

    def _write_regions(self, result: Outcome) -> None:
        for name, region in self._regions().items():
            data = binary.to_bytes(result.outputs[name])
            if len(data) > region.byte_size:
                raise InvalidInput(
                    f"output '{name}' has {len(data)} bytes, its shared memory {region.byte_size}"
                )
            self._owner.shm.write(region.region, region.offset, data)


def _unforeseen(error: Exception) -> EdgeServeError:
    log.error("a call failed", exc_info=error)
    return InferenceFailed("the server failed", cause=type(error).__name__)
