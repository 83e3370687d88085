"""The headers of Azure Machine Learning's inference server: ids of requests, and whether the model failed.

Source: azmlinfsrv 1.5.1, as recorded; https://learn.microsoft.com/azure/machine-learning/how-to-inference-server-http.
"""

from __future__ import annotations

import uuid
from typing import Final

import msgspec

from edgeserve.serve.http.head import Head
from edgeserve.serve.http.response import JSON, ErrorResponse, Refusal, Response
from edgeserve.serve.http.route import NoRoute

_LONGEST: Final = 100  # characters of an id
_FAILED: Final = (500, 504)  # the model failed, or took too long
_OURS: Final = (b"x-ms-request-id", b"x-ms-client-request-id", b"x-request-id")


class AzureError(msgspec.Struct, frozen=True):
    """What failed, and why."""

    message: str


def azure_error(error: ErrorResponse) -> tuple[int, str, bytes]:
    """The error's own status, and `{"message"}`."""
    return error.status, JSON, msgspec.json.encode(AzureError(error.message))


def check_ids(head: Head) -> None:
    """Raise NoRoute for an id that is too long: it would be in every log."""
    for name in _OURS:
        if len(head.headers.get(name, b"")) > _LONGEST:
            message = f"{name.decode()} must not exceed {_LONGEST} characters"
            raise NoRoute(Refusal(431, "head_too_large", message))


def azure_stamp(head: Head, response: Response) -> bytes:
    """`x-request-id` is the client's or a new one, `x-ms-request-id` the client's own name for the request."""
    given = head.headers
    own = given.get(b"x-request-id", b"")[:_LONGEST] or str(uuid.uuid4()).encode()
    client = given.get(b"x-ms-client-request-id", b"")[:_LONGEST]
    lines = [
        b"x-ms-run-function-failed: %s"
        % (b"True" if response.form.status in _FAILED else b"False"),
        b"x-request-id: %s" % own,
        b"x-ms-request-id: %s" % (client or own),
    ]
    if client:
        lines.append(b"x-ms-client-request-id: %s" % client)
    trace = given.get(b"traceid", b"")[:_LONGEST]
    if trace:
        lines.append(b"TraceId: %s" % trace)
    return b"\r\n" + b"\r\n".join(lines)
