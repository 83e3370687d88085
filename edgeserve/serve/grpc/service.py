"""A gRPC service as data: its methods, each with the role that a caller needs, its message and what answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import msgspec
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from edgeserve.errors import EdgeServeError
from edgeserve.serve.access.keys import Role

# Seconds that the client's deadline leaves; None where it set none.
Remaining = Callable[[], float | None]


class OpenCall(Protocol):
    """An inference that has begun. `asked`: it reached the model, which logs its outcome."""

    asked: bool

    def wait(self) -> None:
        """Block until there is an answer."""

    def answer(self) -> bytes:
        """The serialized answer. Raises EdgeServeError."""

    def left(self) -> None:
        """The client is gone, or has its answer; any thread may say so."""


# Called with each request of a stream that is answered, and the error if it got one.
Answered = Callable[[EdgeServeError | None, OpenCall], None]


class OpenStream(Protocol):
    """A stream of requests and answers. `key` is its caller's, `ended_by` the reason why it ended."""

    key: str | None
    ended_by: EdgeServeError | None

    def answers(self) -> Iterator[bytes]:
        """Serialized answers, until the stream ends."""

    def end(self, error: EdgeServeError) -> None:
        """Answer what has begun, then end, for this reason."""

    def left(self) -> None:
        """The client is gone; any thread may say so."""


class Ask(msgspec.Struct, frozen=True):
    """A method that a coroutine answers on the event loop, message for message. Where the role is OPEN the
    message is not read: `request()` stands for it."""

    name: str
    handler: Callable[[Any], Awaitable[Message]]
    request: type[Message]
    role: Role = Role.INFER


class Infer(msgspec.Struct, frozen=True):
    """A method that infers: a serialized message begins a call."""

    name: str
    start: Callable[[bytes, float | None], OpenCall]
    role: Role = Role.INFER


class Exchange(msgspec.Struct, frozen=True):
    """A method with a stream of serialized messages in each direction."""

    name: str
    open: Callable[[Iterator[bytes], Remaining, str | None, Answered], OpenStream]
    role: Role = Role.INFER


class GrpcService(msgspec.Struct, frozen=True):
    """A service by its full name; `file` describes its messages to those who ask by reflection."""

    name: str
    file: FileDescriptor
    methods: tuple[Ask | Infer | Exchange, ...]
