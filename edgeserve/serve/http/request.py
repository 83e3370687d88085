"""A whole request, as routes see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeserve.serve.http.head import Head
from edgeserve.serve.http.response import Response

if TYPE_CHECKING:
    from edgeserve.serve.http.connection import Connection


class Request:
    """A whole request. `respond` answers it, once; `gone` is called if the client leaves before that."""

    __slots__ = ("_connection", "body", "gone", "head")

    def __init__(self, connection: Connection, head: Head, body: bytes | memoryview) -> None:
        self._connection = connection
        self.head = head
        self.body = body
        self.gone: Callable[[], None] | None = None

    @property
    def address(self) -> str:
        return self._connection.address

    @property
    def waits(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._connection.waits_for(self)

    def respond(self, response: Response) -> None:
        self._connection.respond(self, response)
