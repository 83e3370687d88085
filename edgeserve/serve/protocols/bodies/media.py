"""What headers say of a body: its media type and parameters, which answers are accepted; and the parts of a form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from email.message import Message
from typing import Final

import msgspec

from edgeserve.errors import InvalidInput

# Where a handler puts the query among the headers, for `terms` of a protocol.
QUERY: Final = b":query"
_MOST_PARTS: Final = 1_000
_MOST_FIELDS: Final = 100
_PART_HEAD: Final = 4_096


class Media(msgspec.Struct, frozen=True):
    """A media type in lower case, and its parameters by name in lower case."""

    type: str
    parameters: dict[str, str]


def media_of(header: bytes | None, default: str = "application/octet-stream") -> Media:
    """Of a Content-Type; `default` if there is none."""
    if not header:
        return Media(default, {})
    message = Message()
    message["content-type"] = header.decode("latin-1").replace("\n", " ").replace("\r", " ")
    (kind, _), *parameters = message.get_params([("", "")])
    return Media(kind.strip().lower(), {name.lower(): value for name, value in parameters})


def accepted(header: bytes | None, offered: Iterable[str]) -> str | None:
    """The one of the `offered` media types that an Accept prefers, the first of equals; None if it accepts none of
    them. Without a header, the first."""
    choices = list(offered)
    if not header:
        return choices[0]
    weights: dict[str, float] = {}
    for part in header.decode("latin-1").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        weights[kind] = weight

    def wanted(kind: str) -> float:
        for pattern in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
            if pattern in weights:
                return weights[pattern]
        return 0.0

    best = max(choices, key=wanted)
    return best if wanted(best) > 0 else None


class FormPart(msgspec.Struct, frozen=True):
    """One part of a form: its field's name, file name and media type (empty: not said), and what it holds."""

    name: str
    filename: str
    media: str
    data: memoryview


def form_parts(body: bytes | memoryview, boundary: str | None) -> list[FormPart]:
    """The parts of a `multipart/form-data` body, as views on it. Raises InvalidInput. Source: RFC 7578, RFC 2046, 5.1."""
    if not boundary or len(boundary) > 200:
        raise InvalidInput("multipart/form-data: expected a boundary in the content type")
    data = bytes(body)
    view = memoryview(data)
    mark = b"--" + boundary.encode("latin-1")
    at = 0 if data.startswith(mark) else data.find(b"\r\n" + mark) + 2
    if at == 1:
        raise InvalidInput("multipart/form-data: the body does not have the announced boundary")
    found: list[FormPart] = []
    while True:
        at += len(mark)
        if data[at : at + 2] == b"--":
            return found
        start = data.find(b"\r\n", at)
        if start < 0 or data[at:start].strip(b" \t"):
            raise InvalidInput("multipart/form-data: a boundary is malformed")
        start += 2
        end = data.find(b"\r\n" + mark, start - 2)
        if end < 0:
            raise InvalidInput("multipart/form-data: the last boundary is missing")
        if len(found) >= _MOST_PARTS:
            raise InvalidInput(f"multipart/form-data: more than {_MOST_PARTS} parts")
        found.append(_part(data, view, start, max(start, end)))
        at = end + 2


def _part(data: bytes, view: memoryview, start: int, end: int) -> FormPart:
    if data.startswith(b"\r\n", start):
        head, content = b"", start + 2
    else:
        blank = data.find(b"\r\n\r\n", start, min(end, start + _PART_HEAD) + 4)
        if blank < 0:
            raise InvalidInput("multipart/form-data: a part's head is malformed")
        head, content = data[start:blank], blank + 4
    headers = Message()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name:
            headers[name.strip()] = value.strip()
    return FormPart(
        str(headers.get_param("name", "", "content-disposition") or ""),
        headers.get_filename("") or "",
        str(headers.get("content-type", "")).partition(";")[0].strip().lower(),
        view[min(content, end) : end],
    )


def query_of(query: bytes) -> Mapping[str, str]:
    """The parameters of a query, percent-decoded; of several with one name, the last. Raises InvalidInput."""
    from urllib.parse import parse_qsl

    try:
        found = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_FIELDS
        )
    except ValueError:
        raise InvalidInput(f"the query has more than {_MOST_FIELDS} parameters") from None
    return dict(found)
