"""From a request to a model and back: the routes of the Open Inference Protocol v2, and /metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

import edgeserve
from edgeserve.errors import EdgeServeError, InvalidInput, ModelNotFound
from edgeserve.serve.engine import DeadlineExceeded, Outcome, QueueFull, ShuttingDown
from edgeserve.serve.http.connection import Request, Response
from edgeserve.serve.metrics import ServerMetrics
from edgeserve.serve.model import ServedModel
from edgeserve.serve.protocols import v2
from edgeserve.serve.repository import ModelRepository
from edgeserve.tensors import TensorSpec

EXTENSIONS: Final = ("binary_tensor_data", "classification", "parameters", "model_configuration")
_BINARY: Final = "application/octet-stream"
_HEADER_LENGTH: Final = b"inference-header-content-length"
_MODEL: Final = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready|config))?")
_RETRY: Final = (("Retry-After", "1"),)


class Router:
    """Answers requests for the models of a repository."""

    def __init__(self, repository: ModelRepository, metrics: ServerMetrics) -> None:
        self._repository = repository
        self._metrics = metrics
        self._fixed: dict[bytes, Callable[[], Response]] = {
            b"/v2": self._server,
            b"/v2/": self._server,
            b"/v2/health/live": lambda: Response.json({"live": True}),
            b"/v2/health/ready": self._health,
            b"/v2/models": self._list,
            b"/metrics": self._scrape,
        }

    def handle(self, request: Request) -> None:
        """Answer now or later; never raises."""
        fixed = self._fixed.get(request.path)
        if fixed is not None:
            if request.method not in ("GET", "HEAD"):
                request.respond(_not_allowed("GET, HEAD"))
            else:
                request.respond(fixed())
            return
        match = _MODEL.fullmatch(request.path)
        if match is None:
            request.respond(Response.error(404, "no such route"))
            return
        version = None if match[2] is None else _decoded(match[2])
        try:
            model = self._repository.find(_decoded(match[1]), version)
        except ModelNotFound as error:
            request.respond(Response.error(404, str(error)))
            return
        if match[3] == b"infer":
            if request.method != "POST":
                request.respond(_not_allowed("POST"))
            else:
                self._infer(model, request)
            return
        if request.method not in ("GET", "HEAD"):
            request.respond(_not_allowed("GET, HEAD"))
            return
        request.respond(self._about(model, match[3]))

    # inference

    def _infer(self, model: ServedModel, request: Request) -> None:
        coding = request.headers.get(b"content-encoding", b"identity")
        if coding not in (b"", b"identity"):
            request.respond(Response.error(415, "compressed requests are not supported"))
            return
        try:
            decoded = v2.decode_request(
                request.body, _header_length(request.headers), model.interface
            )
        except InvalidInput as error:
            model.metrics.failed("invalid")
            request.respond(Response.error(400, str(error)))
            return

        def done(result: Outcome | EdgeServeError) -> None:
            request.gone = None
            request.respond(_answer(model, decoded, result))

        pending = model.infer(decoded, done)
        if pending is not None and not pending.settled:
            request.gone = lambda: model.cancel(pending)

    # about the server and its models

    def _server(self) -> Response:
        return Response.json(
            {"name": "edgeserve", "version": edgeserve.__version__, "extensions": EXTENSIONS}
        )

    def _health(self) -> Response:
        detail = {m.name: _condition(m) for m in self._repository.loaded()}
        ready = self._repository.ready and all(m["ready"] for m in detail.values())
        document = {"ready": ready, "live": True, "models": detail}
        return Response.json(document, 200 if ready else 503, () if ready else _RETRY)

    def _list(self) -> Response:
        models = [
            {"name": m.name, "versions": self._repository.versions(m.name), **_where(m)}
            for m in self._repository.loaded()
        ]
        return Response.json({"models": models})

    def _scrape(self) -> Response:
        return Response(200, [self._metrics.render()], "text/plain; version=0.0.4; charset=utf-8")

    def _about(self, model: ServedModel, what: bytes | None) -> Response:
        if what == b"ready":
            ready = self._repository.ready and model.status.ready
            return Response.json({"name": model.name, "ready": ready}, 200 if ready else 503)
        if what == b"config":
            return Response.json(_config(model))
        return Response.json(
            v2.metadata(
                model.name, self._repository.versions(model.name), model.platform, model.interface
            )
        )


def _answer(
    model: ServedModel, request: v2.InferRequest, result: Outcome | EdgeServeError
) -> Response:
    if isinstance(result, Outcome):
        where = result.candidate
        parameters = {
            "edgeserve_device": where.device,
            "edgeserve_runtime": where.runtime,
            "edgeserve_variant": where.variant,
        }
        try:
            encoded = v2.encode_response(
                request, result.outputs, model.name, model.version, parameters, model.labels
            )
        except InvalidInput as error:
            return Response.error(400, str(error))
        headers: tuple[tuple[str, str], ...] = (("x-edgeserve-device", where.device),)
        if encoded.header_length is None:
            return Response(200, encoded.parts, headers=headers)
        length = ("Inference-Header-Content-Length", str(encoded.header_length))
        return Response(200, encoded.parts, _BINARY, (*headers, length))
    if isinstance(result, QueueFull | ShuttingDown):
        return Response.error(503, str(result), _RETRY)
    if isinstance(result, DeadlineExceeded):
        return Response.error(504, str(result))
    return Response.error(500, str(result))


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    value = headers.get(_HEADER_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise InvalidInput(
            f"Inference-Header-Content-Length: expected a number, got {value.decode('latin-1')!r:.40}"
        )
    return int(value)


def _decoded(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")


def _not_allowed(allowed: str) -> Response:
    return Response.error(405, f"method not allowed, use {allowed}", (("Allow", allowed),))


def _where(model: ServedModel) -> dict[str, str]:
    candidate = model.candidate
    return {
        "device": candidate.device,
        "runtime": candidate.runtime,
        "variant": candidate.variant,
    }


def _condition(model: ServedModel) -> dict[str, object]:
    """What serves, since when (seconds since 1970), and why the first candidate does not."""
    status = model.status
    condition: dict[str, object] = {"ready": status.ready, **_where(model), "since": status.since}
    if status.max_rows:
        condition["rows_that_fit"] = status.max_rows
    if status.reason is not None:
        first = {"candidate": status.first.label, "reason": status.reason, "hint": status.hint}
        condition["instead_of"] = {**first, "retry_s": status.retry_s}
    return condition


def _config(model: ServedModel) -> dict[str, object]:
    """What Triton's tools read of a model's configuration (model_config.proto's names)."""

    def tensor(spec: TensorSpec) -> dict[str, object]:
        dims = spec.wire_shape[1:] if model.interface.max_batch else spec.wire_shape
        kind = "TYPE_STRING" if spec.dtype == "BYTES" else f"TYPE_{spec.dtype}"
        return {"name": spec.name, "data_type": kind, "dims": dims}

    interface = model.interface
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": model.candidate.runtime,
        "max_batch_size": interface.max_batch,
        "input": [tensor(s) for s in interface.inputs],
        "output": [tensor(s) for s in interface.outputs],
    }
