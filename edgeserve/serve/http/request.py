"""A whole request, as routes see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from edgeserve.serve.http.head import Head
from edgeserve.serve.http.response import Response

TOO_MANY_BODIES: Final = "too many large bodies at one time"


class Work(Protocol):
    """What a request waits for."""

    started: bool


class Traced(Protocol):
    """What keeps the trace of a request."""

    def asks(self) -> None: ...

    def ran(self, model: Any, rows: int, result: Any) -> None: ...

    def answered(self, response: Response) -> None: ...

    def left(self) -> None: ...


class Asker(Protocol):
    """Where a request came from, and its answer goes to: a connection (edgeserve.serve.http.connection)."""

    address: str

    def waits_for(self, request: Request) -> bool: ...

    def hold(self, count: int) -> bool: ...

    def respond(self, request: Request, response: Response) -> None: ...


class Request:
    """A whole request. `respond` answers it, once; `gone` is called if the client leaves before that.

    `work` is what it waits for, unless that has begun already: a client that closes its side before then is
    taken to have left. `trace` is told of the answer, if there is one.
    """

    __slots__ = ("_asker", "body", "gone", "head", "trace", "work")

    def __init__(self, asker: Asker, head: Head, body: bytes | memoryview) -> None:
        self._asker = asker
        self.head = head
        self.body = body
        self.gone: Callable[[], None] | None = None
        self.work: Work | None = None
        self.trace: Traced | None = None

    @property
    def address(self) -> str:
        return self._asker.address

    @property
    def waits(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._asker.waits_for(self)

    def hold(self, count: int) -> bool:
        """Count `count` more bytes among the bodies until the answer; False if there is no room for them."""
        return self._asker.hold(count)

    def respond(self, response: Response) -> None:
        self._asker.respond(self, response)
        if self.trace is not None:
            trace, self.trace = self.trace, None
            trace.answered(response)
