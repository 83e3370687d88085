"""How TorchServe writes an error: `{"code", "type", "message"}`."""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.errors import ModelNotFound
from edgeserve.serve.http.response import JSON, ErrorResponse

_TYPES: Final = {
    400: "BadRequestException",
    401: "InvalidKeyException",
    403: "InvalidKeyException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictStatusException",
    413: "RequestEntityTooLargeException",
    503: "ServiceUnavailableException",
}


class TorchServeError(msgspec.Struct, frozen=True):
    """`code` is the HTTP status, `type` the name of TorchServe's exception."""

    code: int
    type: str
    message: str


def torchserve_error(error: ErrorResponse) -> tuple[int, str, bytes]:
    """The error's own status, and the name that TorchServe has for it."""
    name = _TYPES.get(error.status, "InternalServerException")
    if error.kind is not None and issubclass(error.kind, ModelNotFound):
        version = error.message.startswith("no version")
        name = "ModelVersionNotFoundException" if version else "ModelNotFoundException"
    body = TorchServeError(error.status, name, error.message)
    return error.status, JSON, msgspec.json.encode(body)
