"""What a route is, and the plainest kinds of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from edgeserve.errors import EdgeServeError
from edgeserve.serve.http.errors import failure
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Refusal, Response

log = logging.getLogger(__name__)

# The event loop refers to tasks weakly.
_TASKS: Final[set[asyncio.Task[None]]] = set()

# Of a body that no route reads.
IGNORED_BYTES: Final = 4_096

Route = Callable[[Request], None]


class NoRoute(Exception):
    """Nothing answers here; the refusal says what would."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.form.status)
        self.refusal = refusal


def not_allowed(allowed: str) -> NoRoute:
    message = f"method not allowed, use {allowed}"
    return NoRoute(Refusal(405, "method", message, (("Allow", allowed),)))


def later(request: Request, answer: Coroutine[Any, Any, Response]) -> None:
    """Answer when the coroutine has ended."""

    async def run() -> None:
        try:
            response = await answer
        except EdgeServeError as error:
            response = failure(error)
        except Exception:
            log.exception("a request failed")
            response = Response.error(500, "the server failed; its log says why")
        request.respond(response)

    task = asyncio.get_running_loop().create_task(run())
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


def asking(head: Head, answer: Callable[[], Coroutine[Any, Any, Response]]) -> Route:
    """As `reading`, of what has to be asked elsewhere. Raises NoRoute for other methods."""
    if head.method not in ("GET", "HEAD"):
        raise not_allowed("GET, HEAD")
    return lambda request: later(request, answer())


def reading(head: Head, answer: Callable[[], Response]) -> Route:
    """The route of something that is only looked at. Raises NoRoute for other methods."""
    if head.method not in ("GET", "HEAD"):
        raise not_allowed("GET, HEAD")

    def route(request: Request) -> None:
        try:
            response = answer()
        except EdgeServeError as error:
            response = failure(error)
        request.respond(response)

    return route
