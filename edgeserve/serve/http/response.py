"""Answers: a status, a body in parts, headers; and the bytes of their heads."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
import orjson

from edgeserve.serve.http.head import status_line

JSON: Final = "application/json"
_MESSAGE: Final = 1_000
Headers = tuple[tuple[str, str], ...]
RETRY: Final[Headers] = (("Retry-After", "1"),)


class Response:
    """A status, a body in parts, and headers beside Content-Type and Content-Length.

    `header_length` is Inference-Header-Content-Length: it differs from answer to answer, where the
    other headers repeat.
    """

    __slots__ = ("content_type", "header_length", "headers", "parts", "status")

    def __init__(
        self,
        status: int,
        parts: list[Any],
        content_type: str = JSON,
        headers: Headers = (),
        header_length: int | None = None,
    ) -> None:
        self.status = status
        self.parts = parts
        self.content_type = content_type
        self.headers = headers
        self.header_length = header_length

    @classmethod
    def json(cls, document: object, status: int = 200, headers: Headers = ()) -> Response:
        return cls(status, [orjson.dumps(document)], headers=headers)

    @classmethod
    def struct(cls, document: object) -> Response:
        """Of msgspec structs, or containers of them."""
        return cls(200, [msgspec.json.encode(document)])

    @classmethod
    def error(cls, status: int, message: str, headers: Headers = ()) -> Response:
        """What of a message came from the client is short and, whatever it was, text."""
        text = message[:_MESSAGE].encode("utf-8", "replace").decode()
        return cls.json({"error": text}, status, headers)

    @property
    def size(self) -> int:
        return sum(len(p) for p in self.parts)

    def head(self, *, close: bool) -> bytes:
        """Everything before the body."""
        length = self.size
        start = _start(self.status, self.content_type, self.headers)
        if self.header_length is None and not close:
            return b"%s%d\r\n\r\n" % (start, length)
        more = b"\r\nConnection: close" if close else b""
        if self.header_length is not None:
            more += b"\r\nInference-Header-Content-Length: %d" % self.header_length
        return b"%s%d%s\r\n\r\n" % (start, length, more)


@lru_cache(maxsize=256)
def _start(status: int, content_type: str, headers: Headers) -> bytes:
    """A head up to the value of Content-Length. None of it may come from a client."""
    lines = [f"Content-Type: {content_type}", *(f"{name}: {value}" for name, value in headers)]
    text = "\r\n".join(line.replace("\r", " ").replace("\n", " ") for line in lines)
    return status_line(status) + text.encode("latin-1", "replace") + b"\r\nContent-Length: "
