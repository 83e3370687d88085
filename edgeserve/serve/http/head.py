"""Parses the head of a request: llhttp splits it, and what llhttp is too lenient about is refused here.

Two servers that disagree about where a request ends can be made to see different requests; so anything
ambiguous is an error (RFC 9112, sections 2.2, 5.2 and 6.3).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

import httptools

from edgeserve.serve.settings.limits import Limits

END: Final = b"\r\n\r\n"
_REASONS: Final = {
    200: "OK", 304: "Not Modified", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 409: "Conflict",
    408: "Request Timeout", 411: "Length Required", 413: "Content Too Large",
    414: "URI Too Long", 415: "Unsupported Media Type", 417: "Expectation Failed",
    422: "Unprocessable Content", 424: "Failed Dependency", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 499: "Client Closed Request", 500: "Internal Server Error",
    501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout",
    505: "HTTP Version Not Supported", 507: "Insufficient Storage",
}  # fmt: skip


@cache
def status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n".encode()


class Refused(Exception):
    """The request is refused, and the connection closed after the answer.

    `reason` is the word that the refusal is counted under.
    """

    def __init__(self, status: int, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


class Head:
    """One parsed head. `query` is what follows the path's question mark. `length` is None for a chunked body, 0 for
    none; `asks_to_keep`: a client of HTTP/1.0 that asked to keep the connection. `aligned_at` may be set by the handler of a route: the byte of the body that
    tensors begin at.

    `route`, `most`, `trusted`, `write_error` and `stamp` are set by the router: what answers, the largest body that
    it reads in bytes, whether the caller needed a role and has it, what writes the bodies of errors (an
    ErrorWriter), and what adds headers to each answer (a Stamp, or None). Heads that repeat are routed once.
    """

    __slots__ = (
        "aligned_at", "asks_to_keep", "expects_continue", "headers", "keep_alive", "length", "method",
        "most", "path", "query", "route", "stamp", "trusted", "write_error",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: bytes,
        headers: dict[bytes, bytes],
        length: int | None,
        keep_alive: bool,
        *,
        old: bool = False,
        query: bytes = b"",
    ) -> None:
        """`old`: HTTP/1.0, which has no Expect header."""
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.length = length
        self.keep_alive = keep_alive
        self.asks_to_keep = old and keep_alive
        self.expects_continue = not old and headers.get(b"expect", b"").lower() == b"100-continue"
        self.aligned_at = 0
        self.route: Any = None
        self.most = 0
        self.trusted = False
        self.write_error: Any = None
        self.stamp: Any = None

    def of_length(self, length: int) -> Head:
        """The same head with another Content-Length; `headers` keeps the first one's text."""
        if length == self.length:
            return self
        other = Head.__new__(Head)
        other.method = self.method
        other.path = self.path
        other.query = self.query
        other.headers = self.headers
        other.length = length
        other.keep_alive = self.keep_alive
        other.expects_continue = self.expects_continue
        other.aligned_at = self.aligned_at
        other.asks_to_keep = self.asks_to_keep
        other.route = self.route
        other.most = self.most
        other.trusted = self.trusted
        other.write_error = self.write_error
        other.stamp = self.stamp
        return other


# The first bytes of clients that assume HTTP/2.
_HTTP2: Final = b"PRI * HTTP/2"
_CONTENT_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]+)")
# The longest length that is read, and CR.
_DIGITS: Final = 19


class KnownHead:
    """Recognises the last head of a connection without parsing it again. Most heads of a client are equal, or
    differ in the digits of Content-Length only. `head` is the parsed head.
    """

    __slots__ = ("_after", "_at", "_before", "_most", "_raw", "head")

    def __init__(self, raw: bytes, head: Head, most: int) -> None:
        """`raw` ends with an empty line; it has been parsed as `head` and routed. `most` is the largest body in
        bytes."""
        self._most = most
        found = _CONTENT_LENGTH.search(raw)
        self._raw = raw  # with the length of `head`
        self._at = len(raw) if found is None else found.start(1)
        self._before = raw[: self._at]
        self._after = b"" if found is None else raw[found.end(1) :]
        self.head = head

    def find(self, data: bytearray) -> int:
        """Where the body begins if `data` begins with the head, whose length is then set in `head`; 0 if it does
        not, or the body is too large."""
        if data.startswith(self._raw):
            return len(self._raw)
        if not self._after or not data.startswith(self._before):
            return 0
        at = self._at
        end = data.find(b"\r", at, at + _DIGITS)
        digits = data[at:end]
        if not data.startswith(self._after, end) or not digits.isdigit():
            return 0
        length = int(digits)
        if length > self._most:
            return 0
        self.head = self.head.of_length(length)
        start = end + len(self._after)
        self._raw = bytes(data[:start])
        return start


class _Tokens:
    """Collects what llhttp reports."""

    __slots__ = ("complete", "fields", "keep_alive", "parser", "url")

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.keep_alive = False
        self.parser: Any = None

    def on_url(self, part: bytes) -> None:
        self.url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True
        # When a message without a body is complete, llhttp forgets its headers.
        self.keep_alive = self.parser.should_keep_alive()


def parse_head(data: bytes, limits: Limits) -> Head:
    """Parse a head that ends with an empty line. Raises Refused."""
    _check_lines(data)
    if data.startswith(_HTTP2):
        raise Refused(505, "HTTP/2 is not supported over HTTP ports, use HTTP/1.1", "version")
    tokens = _Tokens()
    parser = tokens.parser = httptools.HttpRequestParser(tokens)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        # An offer to upgrade may be ignored (RFC 9110, section 7.8); the request is answered.
        if parser.get_method() == b"CONNECT":
            raise Refused(501, "tunnels are not supported", "unsupported") from None
    except httptools.HttpParserError as error:
        raise Refused(400, f"malformed request: {error}") from None
    finally:
        tokens.parser = None  # it refers to the tokens: a cycle, and work for the garbage collector
    if not tokens.complete:
        raise Refused(400, "malformed request head")
    if len(tokens.url) > limits.uri_bytes:
        raise Refused(414, f"the URI is longer than {limits.uri_bytes} bytes", "uri_too_long")
    if len(tokens.fields) > limits.headers:
        raise Refused(431, f"more than {limits.headers} headers", "head_too_large")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise Refused(505, f"HTTP/{version} is not supported", "version")
    headers = _unique(tokens.fields)
    if version == "1.1" and b"host" not in headers:
        raise Refused(400, "a Host header is required")
    path, _, query = tokens.url.partition(b"?")
    if not path.startswith(b"/"):
        raise Refused(400, "the request target must be a path")
    method = parser.get_method().decode("ascii", "replace")
    length = _length(headers, version)
    return Head(method, path, headers, length, tokens.keep_alive, old=version == "1.0", query=query)


def _check_lines(data: bytes) -> None:
    """Lines end with CRLF, none is folded, and nothing but a tab is a control character."""
    if data.count(b"\n") != data.count(b"\r\n") or data.count(b"\r") != data.count(b"\r\n"):
        raise Refused(400, "lines must end with CRLF")
    if b"\r\n " in data or b"\r\n\t" in data:
        raise Refused(400, "folded header lines are not supported")
    if b"\0" in data:
        raise Refused(400, "NUL in the request head")


_SINGLE: Final = {b"content-length", b"transfer-encoding", b"host", b"content-type",
                  b"inference-header-content-length", b"content-encoding", b"authorization",
                  b"x-api-key", b"origin"}  # fmt: skip


def _unique(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in headers:
            if name in _SINGLE:
                raise Refused(400, f"the header {name.decode('ascii', 'replace')} is given twice")
            value = headers[name] + b", " + value
        headers[name] = value.strip(b" \t")
    return headers


def _length(headers: dict[bytes, bytes], version: str) -> int | None:
    coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Refused(400, "Content-Length and Transfer-Encoding contradict each other")
        if version == "1.0" or coding.lower() != b"chunked":
            raise Refused(
                501, "the only transfer coding is chunked, on HTTP/1.1", "transfer_coding"
            )
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise Refused(400, "Content-Length is not a number")
    return int(length)
