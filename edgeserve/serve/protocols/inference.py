"""Inference over HTTP, whatever the protocol: a request's body to the model, its outcome to an answer.

What the bytes mean is the protocol's (`protocols/codec.py`); what is long is done on `protocols/threads.py`.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Mapping
from typing import Any, Final

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import Outcome
from edgeserve.serve.engine.in_flight import InFlight
from edgeserve.serve.http.content import CODINGS, BodyTooLarge, accepted_coding, deflate, inflate
from edgeserve.serve.http.errors import failure
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import TOO_MANY_BODIES, Request
from edgeserve.serve.http.response import RETRY, Refusal, Response, form, server_failed
from edgeserve.serve.http.route import NoRoute
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.codec import Codec, InferenceProtocol
from edgeserve.serve.protocols.spans import HttpTrace
from edgeserve.serve.protocols.threads import Lane, Threads, Turn, shortened
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.tracing import Tracing
from edgeserve.tensors import Interface

log = logging.getLogger(__name__)

# More text is decoded, and more of an array is written as text, on a thread, where larger answers are also
# compressed: it takes a few hundred microseconds, for which the loop should not wait.
_INLINE_BYTES: Final = 32_768
# Compressed bodies may become hundreds of times as much.
_INLINE_COMPRESSED: Final = 4_096
# Larger bodies are decoded one at a time: each takes several times its size meanwhile, two that need Python's
# lock are not quicker, and tens of megabytes stay free in the heap of the thread.
_LARGE_BYTES: Final = 1_048_576
# Larger arrays take longer to write than other answers should wait.
_LONG_BYTES: Final = 8_388_608


class Inference:
    """Runs the inferences of one listener, of all its protocols. Owns their threads; lives on the event loop."""

    def __init__(
        self,
        repository: ModelRepository,
        limits: Limits,
        flight: InFlight,
        tracing: Tracing | None = None,
        scheme: str = "http",
    ) -> None:
        """`scheme` is what traces say of the listener."""
        self.repository = repository
        self.limits = limits
        self.flight = flight
        self.threads = Threads(flight)
        self.tracing = tracing
        self.scheme = scheme
        self._codecs: weakref.WeakKeyDictionary[ServedModel, dict[Any, Codec[Any, Any]]]
        self._codecs = weakref.WeakKeyDictionary()

    def close(self) -> None:
        """Blocks while something is read or written."""
        self.threads.close()

    def route(
        self,
        protocol: InferenceProtocol[Any, Any],
        name: str,
        version: str | None,
        headers: Mapping[bytes, bytes],
    ) -> InferRoute:
        """What answers requests to one model whose heads say the same.

        Raises ModelNotFound, ModelUnavailable; NoRoute for a content coding that is not known, and what the
        protocol's `terms` raises.
        """
        self.repository.find(name, version)
        return InferRoute(self, protocol, name, version, headers)

    def codec_of(
        self, protocol: InferenceProtocol[Any, Any], model: ServedModel
    ) -> Codec[Any, Any]:
        """A protocol's codec of a model; making one costs more than a small request does."""
        known = self._codecs.setdefault(model, {})
        if protocol not in known:
            known[protocol] = protocol.codec(model)
        return known[protocol]


class InferRoute:
    """Inference by one model in one protocol, in one form. Heads that repeat share it. `terms` are the protocol's."""

    def __init__(
        self,
        inference: Inference,
        protocol: InferenceProtocol[Any, Any],
        name: str,
        version: str | None,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self._inference = inference
        self._repository = inference.repository
        self._limits = inference.limits
        self._flight = inference.flight
        self._threads = inference.threads
        self._protocol = protocol
        self._name = name
        self._version = version
        self.terms = protocol.terms(headers)
        self._coding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        self._plain = self._coding in ("identity", "")
        if not self._plain and self._coding not in CODINGS:
            message = f"content codings: expected {' or '.join(CODINGS)}, got another"
            accepted = (("Accept-Encoding", "gzip, deflate"),)
            raise NoRoute(Refusal(415, "content_coding", message, accepted))
        self._accepts = accepted_coding(headers.get(b"accept-encoding"))
        self._model: ServedModel | None = None
        self._codec: Codec[Any, Any] | None = None

    def __call__(self, request: Request) -> None:
        """Answer now or later; never raises."""
        tracing = self._inference.tracing
        if tracing is not None:
            request.trace = HttpTrace(
                tracing, request.head, request.address, self._inference.scheme
            )
        try:
            model = self._repository.find(self._name, self._version)
        except EdgeServeError as error:
            request.respond(failure(error))
            return
        if self._flight.count >= self._flight.limit:
            model.recorder.failed("in_flight")
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
        """What is wrong with a body of `length` bytes, before it is received. Raises EdgeServeError."""
        model = self._repository.find(self._name, self._version)
        if self._flight.count >= self._flight.limit:
            model.recorder.failed("in_flight")
            raise self._flight.refusal()
        if self._plain:
            try:
                self._codec_of(model).check_size(length, self.terms)
            except BodyTooLarge as error:
                return Refusal(413, "body_too_large", str(error))
        return None

    def turned_away(self, head: Head, refusal: Refusal) -> None:
        """A body was refused before it was received."""
        tracing = self._inference.tracing
        if tracing is not None:
            HttpTrace(tracing, head, "", self._inference.scheme).answered(refusal)

    def _codec_of(self, model: ServedModel) -> Codec[Any, Any]:
        if model is not self._model or self._codec is None:
            self._model = model
            self._codec = self._inference.codec_of(self._protocol, model)
        return self._codec

    def _inflate(self, model: ServedModel, request: Request) -> None:
        began = time.perf_counter()

        def go_on(body: bytes) -> None:
            if request.hold(len(body)):
                self._resume(request, body, began)
            else:
                model.recorder.failed("in_flight")
                request.respond(Refusal(503, "bodies", TOO_MANY_BODIES, RETRY))

        request.work = turn = Turn()
        self._threads.do(
            Lane.THREAD if len(request.body) > _INLINE_COMPRESSED else Lane.LOOP,
            turn.taking(lambda: inflate(self._coding, request.body, self._limits)),
            go_on,
            request,
            model.recorder.failed,
        )

    def _resume(
        self,
        request: Request,
        body: bytes | memoryview,
        began: float,
        decoded: InferRequest | None = None,
        interface: Interface | None = None,
    ) -> None:
        """Go on after work on a thread, with the model that serves now. If its interface is not the one that
        `decoded` was read for, it is decoded again. The time on the thread counts for the deadline."""
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
        self, model: ServedModel, codec: Codec[Any, Any], request: Request,
        body: bytes | memoryview, size: int, began: float,
    ) -> None:  # fmt: skip
        """Decode a body with `size` bytes of text on a thread."""

        def go_on(decoded: InferRequest) -> None:
            self._resume(request, body, began, decoded, model.interface)

        request.work = turn = Turn()
        self._threads.do(
            Lane.THREAD if size <= _LARGE_BYTES else Lane.READER,
            turn.taking(lambda: codec.decode(body, self.terms)),
            go_on,
            request,
            model.recorder.failed,
        )

    def _run(
        self,
        model: ServedModel,
        codec: Codec[Any, Any],
        request: Request,
        body: bytes | memoryview,
        decoded: InferRequest | None = None,
        began: float = 0.0,
    ) -> None:
        """`began` is when work on the request began; 0: now."""
        if decoded is None:
            size = codec.text_bytes(len(body), self.terms)
            if size > _INLINE_BYTES:
                self._decode(model, codec, request, body, size, began or time.perf_counter())
                return
            try:
                decoded = codec.decode(body, self.terms)
            except EdgeServeError as error:
                model.recorder.failed("invalid")
                request.respond(failure(error))
                return
        if began:
            decoded = shortened(decoded, model, time.perf_counter() - began)
        wanted = decoded
        trace = request.trace
        if trace is not None:
            trace.asks()

        def done(result: Outcome | EdgeServeError) -> None:
            if request.gone is not None:
                request.gone = None
                self._flight.count -= 1
            if trace is not None:
                trace.ran(model, wanted.rows, result)
            self._answer(codec, request, wanted, result)

        pending = model.infer(wanted, done)
        if pending is not None and not pending.settled:

            def gone() -> None:
                self._flight.count -= 1
                model.cancel(pending)
                if trace is not None:
                    trace.left()

            self._flight.count += 1
            request.gone = gone
            request.work = pending

    def _answer(
        self,
        codec: Codec[Any, Any],
        request: Request,
        decoded: InferRequest,
        result: Outcome | EdgeServeError,
    ) -> None:
        if not isinstance(result, Outcome):
            request.respond(failure(result, logged=True))
            return
        outputs = result.outputs
        try:
            size = codec.written_bytes(decoded, outputs)
            if size > _INLINE_BYTES:
                self._encode(codec, request, decoded, result, size)
                return
            response = codec.encode(decoded, outputs, result.candidate)
        except EdgeServeError as error:
            request.respond(failure(error))
            return
        except Exception:  # the engine calls this, not the router: it has to answer here
            log.exception("an answer could not be encoded")
            request.respond(server_failed())
            return
        self._send(request, response)

    def _encode(
        self,
        codec: Codec[Any, Any],
        request: Request,
        decoded: InferRequest,
        result: Outcome,
        size: int,
    ) -> None:
        """Encode on a thread."""
        self._threads.do(
            Lane.WRITER if size <= _LONG_BYTES else Lane.READER,
            lambda: codec.encode(decoded, result.outputs, result.candidate),
            lambda response: self._send(request, response),
            request,
        )

    def _send(self, request: Request, response: Response) -> None:
        if self._accepts is None or response.size < self._limits.compress_bytes:
            request.respond(response)
        else:
            self._compress(self._accepts, request, response)

    def _compress(self, coding: str, request: Request, response: Response) -> None:
        def respond(body: bytes) -> None:
            plain = response.form
            codings = (("Content-Encoding", coding), ("Vary", "Accept-Encoding"))
            shared = form(plain.status, plain.content_type, (*plain.headers, *codings))
            request.respond(Response(shared, [body], response.lines))

        where = Lane.THREAD if response.size > _INLINE_BYTES else Lane.LOOP
        self._threads.do(where, lambda: deflate(coding, response.parts), respond, request)
