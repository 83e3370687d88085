"""How SageMaker's containers write an error: `{"code", "type", "message"}`, as the model server in Amazon's images does."""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.serve.http.response import JSON, ErrorResponse, Refusal
from edgeserve.serve.models.memory import DoesNotFit

_NO_ROOM: Final = 507
_TYPES: Final = {
    400: "BadRequestException",
    401: "UnauthorizedException",
    403: "ForbiddenException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    406: "NotAcceptableException",
    408: "RequestTimeoutException",
    409: "ConflictStatusException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedMediaTypeException",
    503: "ServiceUnavailableException",
}


class InvocationError(msgspec.Struct, frozen=True):
    """What failed, and why. `code` is the HTTP status."""

    code: int
    type: str
    message: str


def write_error(error: ErrorResponse) -> tuple[int, str, bytes]:
    """The error's own status; 507 for a model that does not fit into memory, after which the platform unloads others."""
    no_room = error.kind is not None and issubclass(error.kind, DoesNotFit)
    status = _NO_ROOM if no_room else error.status
    usual = "BadRequestException" if status < 500 else "InternalServerException"
    kind = _TYPES.get(status, usual)
    if isinstance(error, Refusal) and error.reason == "unknown_route":
        kind = "ResourceNotFoundException"
    return status, JSON, msgspec.json.encode(InvocationError(status, kind, error.message))
