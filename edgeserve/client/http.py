"""The Open Inference Protocol v2 over HTTP, with the standard library. Tensors travel as binary data
where the server speaks that extension, as JSON where it does not."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from functools import cached_property
from typing import Final, Self, TypeVar
from urllib.parse import SplitResult, quote

import msgspec

from edgeserve.client import problems
from edgeserve.client.bodies import converted, decoded, encoded
from edgeserve.client.model import (
    Access,
    Answer,
    InsteadOf,
    ModelInfo,
    ModelStatus,
    Question,
    ServerInfo,
    Statistics,
    Where,
    WorkerStatus,
    model_info,
)
from edgeserve.errors import EdgeServeError, EnvironmentProblem, UsageError

_BINARY_EXTENSION: Final = "binary_tensor_data"
_STALE: Final = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)
T = TypeVar("T")


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []


class _Parameter(msgspec.Struct, frozen=True):
    string_value: str = ""


class _Config(msgspec.Struct, frozen=True):
    max_batch_size: int = 0
    parameters: dict[str, _Parameter] = {}


class _Duration(msgspec.Struct, frozen=True):
    count: int = 0
    ns: int = 0

    @property
    def mean_ms(self) -> float:
        return self.ns / self.count / 1e6 if self.count else 0.0


class _Times(msgspec.Struct, frozen=True):
    success: _Duration = _Duration()
    fail: _Duration = _Duration()
    queue: _Duration = _Duration()
    compute_infer: _Duration = _Duration()


class _Stats(msgspec.Struct, frozen=True):
    name: str
    version: str
    execution_count: int = 0
    inference_stats: _Times = _Times()

    def read(self) -> Statistics:
        times = self.inference_stats
        return Statistics(
            succeeded=times.success.count,
            failed=times.fail.count,
            batches=self.execution_count,
            queue_ms=times.queue.mean_ms,
            compute_ms=times.compute_infer.mean_ms,
            total_ms=times.success.mean_ms,
        )


class _AllStats(msgspec.Struct, frozen=True):
    model_stats: list[_Stats] = []


class _Condition(msgspec.Struct, frozen=True):
    instead_of: InsteadOf | None = None
    batching: str = ""


class _Health(msgspec.Struct, frozen=True):
    models: dict[str, _Condition] = {}
    workers: list[WorkerStatus] = []


class _Indexed(msgspec.Struct, frozen=True):
    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class _Listed(msgspec.Struct, frozen=True):
    name: str
    versions: list[str] = []
    device: str | None = None
    runtime: str | None = None
    variant: str | None = None


class _List(msgspec.Struct, frozen=True):
    models: list[_Listed] = []


class _Reply(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    header_length: int | None

    def error(self) -> str:
        """What the server says is wrong."""
        try:
            text = json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            text = self.body[:500].decode("utf-8", "replace").strip()
        return str(text) or f"HTTP {self.status}"


class HttpClient:
    """One keep-alive connection; a `Client`."""

    def __init__(self, url: SplitResult, access: Access) -> None:
        self._url = url.geturl().rstrip("/")
        self._prefix = url.path.rstrip("/")
        self._timeout_s = access.timeout_s
        self._headers = {"Authorization": f"Bearer {access.api_key}"} if access.api_key else {}
        assert url.hostname is not None
        self._connection: http.client.HTTPConnection
        if url.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                url.hostname, url.port, timeout=access.timeout_s, context=_tls(access)
            )
        else:
            self._connection = http.client.HTTPConnection(
                url.hostname, url.port, timeout=access.timeout_s
            )

    # about the server

    def server(self) -> ServerInfo:
        return self._get("/v2", ServerInfo)

    def ready(self) -> bool:
        reply = self._ask("GET", "/v2/health/ready")
        if reply.status in (401, 403, 404):
            raise self._refused(reply)
        return reply.status == 200

    def workers(self) -> list[WorkerStatus]:
        """The server's processes, where it is edgeserve with several."""
        return self._health().workers

    def _health(self) -> _Health:
        """What edgeserve tells with its readiness; nothing where another server answers."""
        try:
            return msgspec.json.decode(self._ask("GET", "/v2/health/ready").body, type=_Health)
        except msgspec.MsgspecError:
            return _Health()

    def models(self) -> list[ModelStatus]:
        statistics = {(s.name, s.version): s.read() for s in self._statistics()}
        where, told = self._where(), self._health().models
        index = self._index()
        if index is None:
            index = [_Indexed(name, v, "READY") for name, v in where]
        return [
            ModelStatus(
                name=m.name,
                version=m.version,
                ready=m.state == "READY",
                reason=m.reason,
                where=where.get((m.name, m.version), Where()),
                statistics=statistics.get((m.name, m.version)),
                instead_of=told.get(m.name, _Condition()).instead_of,
                batching=told.get(m.name, _Condition()).batching,
            )
            for m in index
        ]

    def _index(self) -> list[_Indexed] | None:
        """What the repository extension lists; None where it is off."""
        reply = self._ask("POST", "/v2/repository/index")
        return converted(reply.body, list[_Indexed]) if reply.status == 200 else None

    def _where(self) -> dict[tuple[str, str], Where]:
        reply = self._ask("GET", "/v2/models")
        if reply.status in (401, 403):
            raise self._refused(reply)
        if reply.status != 200:
            return {}
        listed = converted(reply.body, _List).models
        return {
            (m.name, v): Where(m.device, m.runtime, m.variant) for m in listed for v in m.versions
        }

    def _statistics(self) -> list[_Stats]:
        reply = self._ask("GET", "/v2/models/stats")
        return converted(reply.body, _AllStats).model_stats if reply.status == 200 else []

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        path = _model_path(name, version)
        metadata = self._get(path, _Metadata)
        reply = self._ask("GET", f"{path}/config")
        config = converted(reply.body, _Config) if reply.status == 200 else _Config()
        return model_info(
            metadata.name,
            [(t.name, t.datatype, t.shape) for t in metadata.inputs],
            [(t.name, t.datatype, t.shape) for t in metadata.outputs],
            config.max_batch_size,
            {key: value.string_value for key, value in config.parameters.items()},
        )

    # inference

    def infer(self, model: str, question: Question, version: str | None = None) -> Answer:
        as_binary = _BINARY_EXTENSION in self._extensions
        body, header_length = encoded(question, as_binary)
        headers = {"Content-Type": "application/json"}
        if header_length is not None:
            headers = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(header_length),
            }
        reply = self._ask("POST", f"{_model_path(model, version)}/infer", body, headers)
        if reply.status != 200:
            raise self._refused(reply)
        return decoded(reply.body, reply.header_length)

    @cached_property
    def _extensions(self) -> tuple[str, ...]:
        return self.server().extensions

    # exchange

    def _get(self, path: str, kind: type[T]) -> T:
        reply = self._ask("GET", path)
        if reply.status != 200:
            raise self._refused(reply)
        result: T = converted(reply.body, kind)
        return result

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> _Reply:
        reused = self._connection.sock is not None
        sent = {**self._headers, **(headers or {})}
        try:
            try:
                return self._exchange(method, path, body, sent)
            except _STALE:
                if not reused:
                    raise
                # The server had ended an idle connection: that says nothing of this request.
                self._connection.close()
                return self._exchange(method, path, body, sent)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from error

    def _exchange(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> _Reply:
        payload = body if method == "POST" else None
        self._connection.request(method, self._prefix + path, payload, dict(headers))
        response = self._connection.getresponse()
        length = response.getheader("Inference-Header-Content-Length", "")
        return _Reply(response.status, response.read(), int(length) if length.isdigit() else None)

    def _unreachable(self, error: Exception) -> EnvironmentProblem:
        if isinstance(error, TimeoutError):
            return problems.silent(self._url, self._timeout_s)
        if isinstance(error, ConnectionRefusedError):
            return problems.unreachable(self._url)
        if isinstance(error, socket.gaierror):
            return EnvironmentProblem(f"{self._url} cannot be resolved", cause=str(error.strerror))
        if isinstance(error, ssl.SSLCertVerificationError):
            return EnvironmentProblem(
                f"the certificate of {self._url} is not trusted",
                cause=error.verify_message,
                hint="--ca FILE names the authority that signed it",
            )
        if isinstance(error, ssl.SSLError):
            return EnvironmentProblem(
                f"the TLS handshake with {self._url} failed", cause=error.reason or str(error)
            )
        return problems.broken(self._url, str(error) or type(error).__name__)

    def _refused(self, reply: _Reply) -> EdgeServeError:
        cause, status, url = reply.error(), reply.status, self._url
        if status in (401, 403):
            return problems.wants_key(url, cause)
        if status == 404:
            return problems.unknown(url, cause)
        if status in (400, 413, 415, 422, 501):
            return problems.refused(url, cause)
        if status in (429, 503):
            return problems.busy(url, cause)
        if status == 504:
            return problems.late(url, cause)
        return problems.failed(url, f"HTTP {status}", cause)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _tls(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca and str(access.ca))
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.certificate_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError("the TLS files cannot be used", cause=str(error)) from None
    return context


def _model_path(name: str, version: str | None) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"
