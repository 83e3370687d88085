"""How Google's APIs write an error: `{"error": {"code", "message", "status"}}`.

Google's REST client fails on an error that is only text. Source: https://cloud.google.com/apis/design/errors.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.serve.http.response import JSON, ErrorResponse

_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class GoogleStatus(msgspec.Struct, frozen=True):
    """`code` is the HTTP status, `status` the name of Google's code."""

    code: int
    message: str
    status: str


class GoogleError(msgspec.Struct, frozen=True):
    """What failed, and why."""

    error: GoogleStatus


def google_error(error: ErrorResponse) -> tuple[int, str, bytes]:
    """The error's own status, with a body that Google's clients read."""
    name = _STATUSES.get(error.status, "INVALID_ARGUMENT" if error.status < 500 else "INTERNAL")
    body = GoogleError(GoogleStatus(error.status, error.message, name))
    return error.status, JSON, msgspec.json.encode(body)
