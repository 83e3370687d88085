"""Answers: a status, a body in parts, headers; and the bytes of their heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec
import orjson

from edgeserve.serve.http.head import status_line

JSON: Final = "application/json"
_MESSAGE: Final = 1_000
Headers = tuple[tuple[str, str], ...]
RETRY: Final[Headers] = (("Retry-After", "1"),)


class Form:
    """A status and headers beside Content-Length: what many answers share, as bytes made once."""

    __slots__ = ("content_type", "headers", "start", "status")

    def __init__(self, status: int, content_type: str, headers: Headers) -> None:
        self.status = status
        self.content_type = content_type
        self.headers = headers
        lines = [f"Content-Type: {content_type}", *(f"{name}: {value}" for name, value in headers)]
        text = "\r\n".join(line.replace("\r", " ").replace("\n", " ") for line in lines)
        self.start = status_line(status) + text.encode("latin-1", "replace")
        self.start += b"\r\nContent-Length: "


form = lru_cache(maxsize=256)(Form)  # none of what forms are made of may come from a client


class Response:
    """A body in parts under a form. `header_length` is Inference-Header-Content-Length, which differs
    from answer to answer."""

    __slots__ = ("form", "header_length", "parts")

    failed = False  # whether it is an ErrorResponse

    def __init__(self, shared: Form, parts: list[Any], header_length: int | None = None) -> None:
        self.form = shared
        self.parts = parts
        self.header_length = header_length

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
        """Of msgspec structs, or containers of them."""
        return cls.of(status, [msgspec.json.encode(document)], headers=headers)

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def head(self, size: int, more: bytes) -> bytes:
        """Everything before the body of `size` bytes; `more` are header lines, each behind its CRLF."""
        if self.header_length is None and not more:
            return b"%s%d\r\n\r\n" % (self.form.start, size)
        if self.header_length is not None:
            more += b"\r\nInference-Header-Content-Length: %d" % self.header_length
        return b"%s%d%s\r\n\r\n" % (self.form.start, size, more)


class ErrorResponse(Response):
    """The answer to a request that failed. Its body is written when it is sent: each protocol has its own.

    `message` is text, cut to 1,000 characters, whatever part of it came from the client.
    """

    __slots__ = ("message",)

    failed = True

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(form(status, JSON, headers), [])
        self.message = message[:_MESSAGE].encode("utf-8", "replace").decode()

    @property
    def status(self) -> int:
        return self.form.status


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


ErrorWriter = Callable[[ErrorResponse], bytes]


class PlainError(msgspec.Struct, frozen=True):
    """What failed, and why."""

    error: str


def plain_error(error: ErrorResponse) -> bytes:
    """The body of an error, unless a protocol has another, or before the path is known."""
    return msgspec.json.encode(PlainError(error.message))
