"""Answers: a status, headers, a body in parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec
import orjson

from edgeserve.errors import EdgeServeError
from edgeserve.serve.http.head import Head, status_line

JSON: Final = "application/json"
_MESSAGE: Final = 1_000
Headers = tuple[tuple[str, str], ...]
RETRY: Final[Headers] = (("Retry-After", "1"),)


class Form:
    """A status and headers without Content-Length, as bytes: many answers share one form."""

    __slots__ = ("content_type", "headers", "start", "status")

    def __init__(self, status: int, content_type: str, headers: Headers) -> None:
        self.status = status
        self.content_type = content_type
        self.headers = headers
        lines = [f"Content-Type: {content_type}", *(f"{name}: {value}" for name, value in headers)]
        text = "\r\n".join(line.replace("\r", " ").replace("\n", " ") for line in lines)
        self.start = status_line(status) + text.encode("latin-1", "replace")
        self.start += b"\r\nContent-Length: "


form = lru_cache(maxsize=256)(Form)  # nothing in a form may come from a client


class Response:
    """A body in parts under a form. `lines` are further header lines, each after its CRLF, with what differs from
    answer to answer."""

    __slots__ = ("form", "lines", "parts")

    failed = False  # whether it is an ErrorResponse

    def __init__(self, shared: Form, parts: list[Any], lines: bytes = b"") -> None:
        self.form = shared
        self.parts = parts
        self.lines = lines

    @classmethod
    def of(
        cls, status: int, parts: list[Any], content_type: str = JSON, headers: Headers = ()
    ) -> Response:
        return cls(form(status, content_type, headers), parts)

    @classmethod
    def json(cls, document: object, status: int = 200, headers: Headers = ()) -> Response:
        return cls.of(status, [orjson.dumps(document)], headers=headers)

    @classmethod
    def struct(cls, document: object, status: int = 200, headers: Headers = ()) -> Response:
        """JSON of msgspec structs, or of containers of them."""
        return cls.of(status, [msgspec.json.encode(document)], headers=headers)

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def head(self, size: int, more: bytes) -> bytes:
        """Everything before a body of `size` bytes; `more` are header lines, each after its CRLF."""
        return b"%s%d%s%s\r\n\r\n" % (self.form.start, size, more, self.lines)


class ErrorResponse(Response):
    """The answer to a request that failed. Its body is written when it is sent: each protocol has its own.

    `message` is text, cut to 1,000 characters, whatever part of it came from the client. `kind` is the class of the
    error that it answers, for protocols with a status of their own for it; None: there was none.
    """

    __slots__ = ("kind", "message")

    failed = True

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(form(status, JSON, headers), [])
        self.kind: type[EdgeServeError] | None = None
        self.message = message[:_MESSAGE].encode("utf-8", "replace").decode()

    @property
    def status(self) -> int:
        return self.form.status

    def write(self, writer: ErrorWriter) -> None:
        """Have a protocol write it."""
        status, content_type, body = writer(self)
        self.form = form(status, content_type, self.form.headers)
        self.parts = [body]


class Refusal(ErrorResponse):
    """The answer to a request that is not served. Refusals are counted by status and reason.

    `reason` is one of the words in docs/operations.md, never text from a client. `logged`: the access log has a
    line about the request already.
    """

    __slots__ = ("logged", "reason")

    def __init__(
        self, status: int, reason: str, message: str, headers: Headers = (), *, logged: bool = False
    ) -> None:
        super().__init__(status, message, headers)
        self.reason = reason
        self.logged = logged


def server_failed() -> ErrorResponse:
    """For an exception that nobody foresaw; it is in the log."""
    return ErrorResponse(500, "the server failed; its log says why")


# What a protocol adds to each answer to a head, errors included: header lines, each after its CRLF, without line
# ends from a client. Called when the answer is sent.
Stamp = Callable[[Head, Response], bytes]


# How a protocol writes an error: the status, which may differ from the error's own, the content type and the body.
ErrorWriter = Callable[[ErrorResponse], tuple[int, str, bytes]]


class PlainError(msgspec.Struct, frozen=True):
    """What failed, and why."""

    error: str


def plain_error(error: ErrorResponse) -> tuple[int, str, bytes]:
    """An error, unless a protocol writes it otherwise, or before the path is known."""
    return error.status, JSON, msgspec.json.encode(PlainError(error.message))
