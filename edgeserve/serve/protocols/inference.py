"""The inference route: a request's body to the model, its outcome to an answer."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.errors import EdgeServeError, InvalidInput
from edgeserve.serve.engine import Outcome, time_limit
from edgeserve.serve.engine.flight import InFlight
from edgeserve.serve.heap import Trimmer
from edgeserve.serve.http.content import CODINGS, BodyTooLarge, accepted_coding, deflate, inflate
from edgeserve.serve.http.errors import failure
from edgeserve.serve.http.request import TOO_MANY_BODIES, Request
from edgeserve.serve.http.response import JSON, RETRY, Form, Refusal, Response, form
from edgeserve.serve.http.route import NoRoute
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.protocols.v2 import codec as v2
from edgeserve.serve.protocols.v2.answers import Encoded
from edgeserve.serve.protocols.v2.classes import Classes
from edgeserve.serve.protocols.v2.request import V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory, SharedMemoryOff, UnknownRegion
from edgeserve.tensors import Interface
from edgeserve.wire import binary

log = logging.getLogger(__name__)

_BINARY: Final = "application/octet-stream"
_HEADER_LENGTH: Final = b"inference-header-content-length"
# More JSON than that is read on a thread, more of an array is written as JSON there, and larger answers
# are compressed there, so that the loop does not wait for them: it takes a few hundred microseconds.
_INLINE_BYTES: Final = 32_768
# Compressed bodies may become hundreds of times as much.
_INLINE_COMPRESSED: Final = 4_096
# JSON of such a size leaves tens of megabytes free in the heap of the thread that read it; one at a time
# is read, for it takes several times its size meanwhile, and two that need Python's lock are no quicker.
_LARGE_BYTES: Final = 1_048_576
# Arrays of such a size take longer to write than other answers should wait for.
_LONG_BYTES: Final = 8_388_608
_INVALID: Final = (InvalidInput, UnknownRegion, SharedMemoryOff)
_T = TypeVar("_T")


class _Where(enum.Enum):
    """Where work is done that may take long: it waits for a thread, or the loop for it."""

    LOOP = enum.auto()
    THREAD = enum.auto()
    WRITER = enum.auto()  # the one thread for answers: two would keep the loop from Python's lock
    READER = enum.auto()  # the one thread for large JSON


class _Turn:
    """What a request waits for that is to be read on a thread."""

    __slots__ = ("started",)

    def __init__(self) -> None:
        self.started = False

    def taking(self, work: Callable[[], _T]) -> Callable[[], _T]:
        """`work`, which notes that it has begun."""

        def begin() -> _T:
            self.started = True
            return work()

        return begin


class _ClientLeft(Exception):
    """Nobody waits for what was to be done."""


class Codecs:
    """The codec of each model that is asked for; making one costs more than a small request does. Owns the
    threads for JSON."""

    def __init__(self, shm: SharedMemory, limits: Limits) -> None:
        self._shm = shm
        self._limits = limits
        self.trimmer = Trimmer()
        self.threads = {
            _Where.WRITER: ThreadPoolExecutor(1, "edgeserve-answers"),
            _Where.READER: ThreadPoolExecutor(1, "edgeserve-json"),
        }
        self._known: weakref.WeakKeyDictionary[ServedModel, v2.Codec] = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """What waits to be read or written is nobody's by now; blocks while something is."""
        for thread in self.threads.values():
            thread.shutdown(cancel_futures=True)

    def of(self, model: ServedModel) -> v2.Codec:
        codec = self._known.get(model)
        if codec is None:
            codec = self._known[model] = v2.Codec(
                model.name, model.version, model.interface,
                Classes(model.interface, model.class_names), self._limits, self._shm,
                keeps_state=model.keeps_state,
            )  # fmt: skip
        return codec


class InferRoute:
    """What a head asks for: inference by one model, in one form. Heads that repeat share it.

    Raises InvalidInput for a head that says something impossible, and NoRoute for a coding that is not known.
    """

    def __init__(
        self,
        repository: ModelRepository,
        codecs: Codecs,
        limits: Limits,
        flight: InFlight,
        name: str,
        version: str | None,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self._repository = repository
        self._codecs = codecs
        self._limits = limits
        self._flight = flight
        self._name = name
        self._version = version
        self._header_length = header_length(headers)
        self._coding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        self._plain = self._coding in ("identity", "")
        if not self._plain and self._coding not in CODINGS:
            message = f"content codings: expected {' or '.join(CODINGS)}, got another"
            accepted = (("Accept-Encoding", "gzip, deflate"),)
            raise NoRoute(Refusal(415, "content_coding", message, accepted))
        self._accepts = accepted_coding(headers.get(b"accept-encoding"))
        self._model: ServedModel | None = None
        self._codec: v2.Codec | None = None
        self._sized: ServedModel | None = None  # whose inputs take at most
        self._most: int | None = None  # bytes
        self._candidate: Candidate | None = None
        self._json: Form
        self._binary: Form

    def __call__(self, request: Request) -> None:
        """Answer now or later; never raises."""
        try:
            model = self._repository.find(self._name, self._version)
        except EdgeServeError as error:
            request.respond(failure(error))
            return
        if self._flight.count >= self._flight.limit:
            model.metrics.failed("in_flight")
            request.respond(failure(self._flight.refusal()))
            return
        codec = self._codec
        if model is not self._model or codec is None:
            codec = self._codec_of(model)
        if self._plain:
            self._run(model, codec, request, request.body)
        else:
            self._inflate(model, request)

    def misfit(self, length: int) -> Refusal | None:
        """What is wrong with a body of so many bytes. Raises ModelNotFound, ModelUnavailable, TooManyInFlight."""
        model = self._repository.find(self._name, self._version)
        if self._flight.count >= self._flight.limit:
            model.metrics.failed("in_flight")
            raise self._flight.refusal()
        if self._header_length is None or not self._plain:
            return None
        if self._header_length > length:
            message = f"the JSON is announced as {self._header_length} bytes of {length}"
            return Refusal(400, "invalid", message)
        if model is not self._sized:
            self._sized, self._most = model, binary.most_bytes(model.interface)
        most = self._most
        given = length - self._header_length
        if most is None or given <= most:
            return None
        message = f"the inputs of '{model.name}' are at most {most} bytes, got {given}"
        return Refusal(413, "body_too_large", message)

    def _codec_of(self, model: ServedModel) -> v2.Codec:
        if model is not self._model or self._codec is None:
            self._model = model
            self._codec = self._codecs.of(model)
        return self._codec

    def _inflate(self, model: ServedModel, request: Request) -> None:
        began = time.perf_counter()

        def go_on(body: bytes) -> None:
            if request.hold(len(body)):
                self._resume(request, body, began)
            else:
                model.metrics.failed("in_flight")
                request.respond(Refusal(503, "bodies", TOO_MANY_BODIES, RETRY))

        request.work = turn = _Turn()
        self._aside(
            _Where.THREAD if len(request.body) > _INLINE_COMPRESSED else _Where.LOOP,
            turn.taking(lambda: inflate(self._coding, request.body, self._limits)),
            go_on,
            request,
            model.metrics.failed,
        )

    def _resume(
        self,
        request: Request,
        body: bytes | memoryview,
        began: float,
        decoded: V2Request | None = None,
        interface: Interface | None = None,
    ) -> None:
        """Go on with what took a while on a thread, with the model that serves by now; one of another
        `interface` than `decoded` was read for reads it again. The time it took is the request's own."""
        try:
            model = self._repository.find(self._name, self._version)
        except EdgeServeError as error:
            request.respond(failure(error))
            return
        codec = self._codec_of(model)
        if decoded is not None and model.interface != interface:
            decoded = None
        self._run(model, codec, request, body, decoded, began)

    def _decode(
        self, model: ServedModel, codec: v2.Codec, request: Request, body: bytes | memoryview,
        began: float,
    ) -> None:  # fmt: skip
        """Decode on a thread."""

        def go_on(decoded: V2Request) -> None:
            self._resume(request, body, began, decoded, model.interface)

        size = codec.text_bytes(len(body), self._header_length)
        request.work = turn = _Turn()
        self._aside(
            _Where.THREAD if size <= _LARGE_BYTES else _Where.READER,
            turn.taking(lambda: codec.decode(body, self._header_length)),
            go_on,
            request,
            model.metrics.failed,
        )

    def _run(
        self,
        model: ServedModel,
        codec: v2.Codec,
        request: Request,
        body: bytes | memoryview,
        decoded: V2Request | None = None,
        began: float = 0.0,
    ) -> None:
        """`began` is when work on the request began, unless that was just now."""
        if decoded is None:
            if (
                len(body) > _INLINE_BYTES
                and codec.text_bytes(len(body), self._header_length) > _INLINE_BYTES
            ):
                self._decode(model, codec, request, body, began or time.perf_counter())
                return
            try:
                decoded = codec.decode(body, self._header_length)
            except _INVALID as error:
                model.metrics.failed("invalid")
                request.respond(failure(error))
                return
        if began:
            decoded = _shortened(decoded, model, time.perf_counter() - began)
        wanted = decoded

        def done(result: Outcome | EdgeServeError) -> None:
            if request.gone is not None:
                request.gone = None
                self._flight.count -= 1
            self._answer(codec, request, wanted, result)

        pending = model.infer(wanted, done)
        if pending is not None and not pending.settled:

            def gone() -> None:
                self._flight.count -= 1
                model.cancel(pending)

            self._flight.count += 1
            request.gone = gone
            request.work = pending

    def _answer(
        self,
        codec: v2.Codec,
        request: Request,
        decoded: V2Request,
        result: Outcome | EdgeServeError,
    ) -> None:
        if not isinstance(result, Outcome):
            request.respond(failure(result, logged=True))
            return
        outputs, candidate = result.outputs, result.candidate
        try:
            size = codec.written_bytes(decoded, outputs)
            if size > _INLINE_BYTES:
                self._encode(codec, request, decoded, result, size)
                return
            encoded = codec.encode(decoded, outputs, candidate)
        except _INVALID as error:
            request.respond(failure(error))
            return
        except Exception:  # nobody else would answer: the engine calls this, not the router
            log.exception("an answer could not be encoded")
            request.respond(Response.error(500, "the server failed; its log says why"))
            return
        self._send(request, candidate, encoded)

    def _encode(
        self,
        codec: v2.Codec,
        request: Request,
        decoded: V2Request,
        result: Outcome,
        size: int,
    ) -> None:
        """Encode on a thread."""

        def go_on(encoded: Encoded) -> None:
            self._send(request, result.candidate, encoded)

        self._aside(
            _Where.WRITER if size <= _LONG_BYTES else _Where.READER,
            lambda: codec.encode(decoded, result.outputs, result.candidate),
            go_on,
            request,
        )

    def _send(self, request: Request, candidate: Candidate, encoded: Encoded) -> None:
        if self._candidate is not candidate:
            self._candidate = candidate
            where = (("x-edgeserve-device", candidate.device),)
            self._json, self._binary = (form(200, kind, where) for kind in (JSON, _BINARY))
        length = encoded.header_length
        response = Response(self._json if length is None else self._binary, encoded.parts, length)
        if self._accepts is None or response.size < self._limits.compress_bytes:
            request.respond(response)
        else:
            self._compress(self._accepts, request, response)

    def _compress(self, coding: str, request: Request, response: Response) -> None:
        def respond(body: bytes) -> None:
            plain = response.form
            codings = (("Content-Encoding", coding), ("Vary", "Accept-Encoding"))
            shared = form(200, plain.content_type, (*plain.headers, *codings))
            request.respond(Response(shared, [body], response.header_length))

        where = _Where.THREAD if response.size > _INLINE_BYTES else _Where.LOOP
        self._aside(where, lambda: deflate(coding, response.parts), respond, request)

    def _aside(
        self,
        where: _Where,
        work: Callable[[], _T],
        then: Callable[[_T], None],
        request: Request,
        failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Do `work`; `then` gets its result on the loop. `failed` is told why there is none."""

        def finish(get: Callable[[], _T]) -> None:
            if not request.waits:
                failed("canceled")  # its client has left meanwhile
                return
            try:
                then(get())
            except _INVALID as error:
                failed("invalid")
                request.respond(failure(error))
            except BodyTooLarge as error:
                failed("invalid")
                request.respond(Refusal(413, "body_too_large", str(error)))
            except Exception:  # on a thread nobody else would answer
                log.exception("a request could not be handled")
                request.respond(Response.error(500, "the server failed; its log says why"))

        if where is _Where.LOOP:
            finish(work)
            return
        self._flight.count += 1

        def unless_left() -> _T:
            if not request.waits:
                raise _ClientLeft
            return work()

        def landed(done: asyncio.Future[_T]) -> None:
            self._flight.count -= 1
            if done.cancelled():  # the server ends
                return
            error = done.exception()
            finish(done.result)
            if error is not None:
                error.__traceback__ = None  # its frames hold the request, and the future it
            if where is _Where.READER:
                self._codecs.trimmer.soon()

        executor = self._codecs.threads.get(where)
        asyncio.get_running_loop().run_in_executor(executor, unless_left).add_done_callback(landed)


def _shortened(decoded: V2Request, model: ServedModel, took_s: float) -> V2Request:
    """The request with what is left of its time."""
    limit = time_limit(model.settings, decoded.timeout_s, decoded.priority)
    if not limit:
        return decoded
    left = limit - took_s
    return msgspec.structs.replace(decoded, timeout_s=left if left > 0 else -1.0)


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Inference-Header-Content-Length. Raises InvalidInput."""
    value = headers.get(_HEADER_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise InvalidInput(
            f"Inference-Header-Content-Length: expected a number, got {value.decode('latin-1')!r:.40}"
        )
    return int(value)
