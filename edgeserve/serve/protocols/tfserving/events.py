"""CloudEvents, as KServe v1 takes and answers them: the body with the event's attributes in headers (binary mode), or as
`data` of a JSON object (structured mode).

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md; source and type of
answers are KServe's.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from urllib.parse import quote

import msgspec

from edgeserve.errors import InvalidInput
from edgeserve.serve.http.response import Response, form
from edgeserve.serve.protocols.bodies.codec import BodyRequest
from edgeserve.wire.text import check_depth

_STRUCTURED: Final = "application/cloudevents+json"
_TYPE: Final = "io.kserve.inference.response"


class EventMode(StrEnum):
    """Where an event's attributes are."""

    BINARY = "binary"
    STRUCTURED = "structured"


class EventRequest(BodyRequest, frozen=True):
    """A request that came as an event: its answer is one, too."""

    mode: EventMode = EventMode.BINARY


class _Event(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    data: msgspec.Raw = msgspec.Raw(b"")
    data_base64: str | None = None


_DECODER: Final = msgspec.json.Decoder(_Event)


def mode_of(headers: Mapping[bytes, bytes]) -> EventMode | None:
    """None: the request is not an event."""
    if b"ce-specversion" in headers:
        return EventMode.BINARY
    media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return EventMode.STRUCTURED if media == _STRUCTURED.encode() else None


def data_of(body: bytes | memoryview, depth: int) -> bytes:
    """The data of an event in structured mode. Raises InvalidInput."""
    whole = bytes(body)
    check_depth(whole, depth)
    try:
        event = _DECODER.decode(whole)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not a CloudEvent in JSON: {error}") from None
    if event.data_base64 is None:
        return bytes(event.data)
    try:
        return base64.b64decode(event.data_base64, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("data_base64: expected base64") from None


def as_event(request: BodyRequest, mode: EventMode) -> EventRequest:
    """The request, whose answer is to be an event."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    return EventRequest(**fields, mode=mode)


def event_of(response: Response, model: str, mode: EventMode) -> Response:
    """An answer as an event with an id and a time of its own."""
    attributes = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": quote(f"io.kserve.inference.{model}"),
        "type": _TYPE,
        "time": datetime.now(UTC).isoformat(),
    }
    plain = response.form
    if mode is EventMode.BINARY:
        lines = "".join(f"\r\nce-{name}: {value}" for name, value in attributes.items())
        return Response(plain, response.parts, response.lines + lines.encode("ascii"))
    head = msgspec.json.encode(attributes | {"datacontenttype": plain.content_type})
    shared = form(plain.status, _STRUCTURED, plain.headers)
    return Response(shared, [head[:-1], b',"data":', *response.parts, b"}"], response.lines)
