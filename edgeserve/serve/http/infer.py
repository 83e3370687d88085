"""The inference route: a request's body to the model, its outcome to an answer."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Final

from edgeserve.bundle import Candidate
from edgeserve.errors import EdgeServeError, InvalidInput
from edgeserve.serve.engine import Outcome
from edgeserve.serve.http.content import CODINGS, BodyTooLarge, accepted_coding, deflate, inflate
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import JSON, Form, Response, form
from edgeserve.serve.http.status import failure
from edgeserve.serve.limits import Limits
from edgeserve.serve.model import ServedModel
from edgeserve.serve.protocols import v2
from edgeserve.serve.repository import ModelRepository
from edgeserve.serve.shm import SharedMemory, SharedMemoryOff, UnknownRegion

log = logging.getLogger(__name__)

_BINARY: Final = "application/octet-stream"
_HEADER_LENGTH: Final = b"inference-header-content-length"
# Larger bodies are inflated and compressed on a thread, so that the loop does not wait for them.
_INLINE_BYTES: Final = 32_768


class Codecs:
    """The codec of each model that is asked for; making one costs more than a small request does."""

    def __init__(self, shm: SharedMemory, limits: Limits) -> None:
        self._shm = shm
        self._limits = limits
        self._known: weakref.WeakKeyDictionary[ServedModel, v2.Codec] = weakref.WeakKeyDictionary()

    def of(self, model: ServedModel) -> v2.Codec:
        codec = self._known.get(model)
        if codec is None:
            codec = self._known[model] = v2.Codec(
                model.name, model.version, model.interface, model.labels, self._limits, self._shm
            )
        return codec


class InferRoute:
    """What a head asks for: inference by one model, in one form. Heads that repeat share it.

    Raises InvalidInput for a head that says something impossible.
    """

    def __init__(
        self,
        repository: ModelRepository,
        codecs: Codecs,
        limits: Limits,
        name: str,
        version: str | None,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self._repository = repository
        self._codecs = codecs
        self._limits = limits
        self._name = name
        self._version = version
        self._header_length = header_length(headers)
        self._coding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        self._plain = self._coding in ("identity", "")
        self._accepts = accepted_coding(headers.get(b"accept-encoding"))
        self._model: ServedModel | None = None
        self._codec: v2.Codec | None = None
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
        if model is not self._model or self._codec is None:
            self._model = model
            self._codec = self._codecs.of(model)
        if self._plain:
            self._run(model, self._codec, request, request.body)
        elif self._coding in CODINGS:
            self._inflate(model, self._codec, request)
        else:
            message = f"content codings: expected {' or '.join(CODINGS)}, got another"
            request.respond(Response.error(415, message, (("Accept-Encoding", "gzip, deflate"),)))

    def _inflate(self, model: ServedModel, codec: v2.Codec, request: Request) -> None:
        def run(body: bytes) -> None:
            self._run(model, codec, request, body)

        self._aside(
            len(request.body),
            lambda: inflate(self._coding, request.body, self._limits),
            run,
            request,
        )

    def _run(
        self, model: ServedModel, codec: v2.Codec, request: Request, body: bytes | memoryview
    ) -> None:
        try:
            decoded = codec.decode(body, self._header_length)
        except (InvalidInput, UnknownRegion, SharedMemoryOff) as error:
            model.metrics.failed("invalid")
            request.respond(failure(error))
            return

        def done(result: Outcome | EdgeServeError) -> None:
            request.gone = None
            self._answer(codec, request, decoded, result)

        pending = model.infer(decoded, done)
        if pending is not None and not pending.settled:
            request.gone = lambda: model.cancel(pending)

    def _answer(
        self,
        codec: v2.Codec,
        request: Request,
        decoded: v2.InferRequest,
        result: Outcome | EdgeServeError,
    ) -> None:
        if not isinstance(result, Outcome):
            request.respond(failure(result))
            return
        try:
            encoded = codec.encode(decoded, result.outputs, result.candidate)
        except (InvalidInput, UnknownRegion, SharedMemoryOff) as error:
            request.respond(failure(error))
            return
        except Exception:  # nobody else would answer: the engine calls this, not the router
            log.exception("an answer could not be encoded")
            request.respond(Response.error(500, "the server failed; its log says why"))
            return
        if self._candidate is not result.candidate:
            self._candidate = result.candidate
            where = (("x-edgeserve-device", result.candidate.device),)
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

        self._aside(response.size, lambda: deflate(coding, response.parts), respond, request)

    def _aside(
        self, size: int, work: Callable[[], bytes], then: Callable[[bytes], None], request: Request
    ) -> None:
        """Do `work`, on a thread where it takes long; `then` gets its result on the loop."""

        def finish(get: Callable[[], bytes]) -> None:
            if not request.waits:
                return  # its client has left meanwhile
            try:
                then(get())
            except InvalidInput as error:
                request.respond(failure(error))
            except BodyTooLarge as error:
                request.respond(Response.error(413, str(error)))
            except Exception:  # on a thread nobody else would answer
                log.exception("a request could not be handled")
                request.respond(Response.error(500, "the server failed; its log says why"))

        if size <= _INLINE_BYTES:
            finish(work)
            return
        future = asyncio.get_running_loop().run_in_executor(None, work)
        future.add_done_callback(lambda done: finish(done.result))


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
