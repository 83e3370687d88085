"""A whole request, as routes see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from edgeserve.serve.http.head import Head
from edgeserve.serve.http.response import Response

if TYPE_CHECKING:
    from edgeserve.serve.http.reading import Reading


TOO_MANY_BODIES: Final = "too many large bodies at one time"


class Work(Protocol):
    """What a request waits for."""

    started: bool


class Request:
    """A whole request. `respond` answers it, once; `gone` is called if the client leaves before that.

    `work` is what it waits for, where that may not have begun: a client that closes its side is then taken
    to have left.
    """

    __slots__ = ("_connection", "body", "gone", "head", "work")

    def __init__(self, connection: Reading, head: Head, body: bytes | memoryview) -> None:
        self._connection = connection
        self.head = head
        self.body = body
        self.gone: Callable[[], None] | None = None
        self.work: Work | None = None

    @property
    def address(self) -> str:
        return self._connection.address

    @property
    def waits(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._connection.waits_for(self)

    def hold(self, count: int) -> bool:
        """Count so many bytes more among the bodies until the answer; False: there is no room for them."""
        return self._connection.hold(count)

    def respond(self, response: Response) -> None:
        self._connection.respond(self, response)
