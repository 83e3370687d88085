"""The script, the style and the icon of the page: files of the package, under names that are fixed here."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from edgeserve.serve.http.head import Head
from edgeserve.serve.http.response import Headers, Response, form

NAMES: Final = {
    "page.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "try.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class PageFiles:
    """Answers for the files. They are read once, and sent again only if a browser has other ones."""

    def answer(self, name: str, head: Head) -> Response:
        """A file whose name is one of NAMES."""
        body, tag = _read(name)
        headers: Headers = (
            ("ETag", tag),
            ("Cache-Control", "no-cache"),
            ("Content-Security-Policy", "default-src 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        )
        known = head.headers.get(b"if-none-match", b"").decode("latin-1")
        if tag in {one.strip().removeprefix("W/") for one in known.split(",")}:
            return _Unchanged(NAMES[name], headers, len(body))
        return Response.of(200, [body], NAMES[name], headers)


class _Unchanged(Response):
    """Without a body, but with the length that it has (RFC 9110, 8.6)."""

    __slots__ = ("_length",)

    def __init__(self, content_type: str, headers: Headers, length: int) -> None:
        super().__init__(form(304, content_type, headers), [b""])
        self._length = length

    def head(self, size: int, more: bytes) -> bytes:
        return super().head(self._length, more)


@cache
def _read(name: str) -> tuple[bytes, str]:
    """The file and its ETag."""
    body = (files("edgeserve.serve.status") / "static" / name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
