"""From a URL to a client: http://, https://, grpc:// and grpcs://."""

from __future__ import annotations

from typing import Final, Protocol, Self
from urllib.parse import urlsplit

from edgeserve.client.model import (
    Access,
    Answer,
    ModelInfo,
    ModelStatus,
    Question,
    ServerInfo,
    WorkerStatus,
)
from edgeserve.errors import DependencyMissing, UsageError

SCHEMES: Final = ("http", "https", "grpc", "grpcs")


class Client(Protocol):
    """A connection to one server; use it with `with`, from one thread at a time.

    Every method raises EnvironmentProblem when the server cannot be reached or does not answer in time,
    and the error that fits what the server says (UsageError, ModelNotFound, InvalidInput,
    InferenceFailed, EnvironmentProblem), with its text as the cause.
    """

    def server(self) -> ServerInfo: ...

    def ready(self) -> bool: ...

    def workers(self) -> list[WorkerStatus]: ...

    def models(self) -> list[ModelStatus]: ...

    def model(self, name: str, version: str | None = None) -> ModelInfo: ...

    def infer(self, model: str, question: Question, version: str | None = None) -> Answer: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *raised: object) -> None: ...


def is_url(text: str) -> bool:
    return "://" in text


def connect(url: str, access: Access | None = None) -> Client:
    """A client for `url`; the first request opens the connection. Raises UsageError,
    DependencyMissing."""
    parts = urlsplit(url)
    access = access or Access()
    try:
        usable = parts.scheme in SCHEMES and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        usable = False
    is_grpc = parts.scheme.startswith("grpc")
    if is_grpc and (parts.path or parts.port is None):
        usable = False
    if not usable or parts.query or parts.fragment or parts.username:
        raise UsageError(
            f"{url} is not the URL of a server",
            hint="http://, https://, grpc:// or grpcs:// and HOST:PORT, as `edgeserve run` prints them",
        )
    if is_grpc:
        try:
            from edgeserve.client.grpc import GrpcClient
        except ImportError as error:
            package = str(error.name).partition(".")[0]
            raise DependencyMissing(package, needed_for="a grpc:// URL", extra="grpc") from None
        return GrpcClient(parts, access)
    from edgeserve.client.http import HttpClient

    return HttpClient(parts, access)
