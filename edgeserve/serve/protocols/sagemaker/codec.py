"""Bodies of `/invocations`: what SageMaker's serializers send, told apart by media type, and answers as Accept asks.

Sources: sagemaker-inference 1.10.1 (decoder.py, encoder.py); Triton's src/sagemaker_server.cc for its binary type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.serve.http.response import JSON, Response
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.bodies.codec import BodyRequest
from edgeserve.serve.protocols.bodies.dialects import (
    ANSWERS,
    JSON_SIZE,
    Dialect,
    DialectCodec,
    DialectTerms,
    answer_media,
    json_size,
)
from edgeserve.serve.protocols.bodies.media import Media, media_of
from edgeserve.serve.protocols.codec import Codec, InferenceProtocol, answer_form
from edgeserve.serve.protocols.sagemaker.headers import identity_of
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Tensors

TRITON: Final = "application/vnd.sagemaker-triton.binary+json"
# What DataSerializer of the SDK calls a file's content.
_RAW: Final = "file-path/raw-bytes"
_BINARY: Final = "application/octet-stream"


class InvocationTerms(DialectTerms, frozen=True):
    """As DialectTerms. `identity` is the request's id for the log; `triton`: the answer has Triton's binary type."""

    identity: str | None = None
    triton: bool = False


class Invocations:
    """What protocols/inference.py serves at `/invocations` and `/models/M/invoke`."""

    def __init__(
        self,
        limits: Limits,
        v2: InferenceProtocol[int | None, InferRequest],
        default_accept: str = JSON,
    ) -> None:
        """`default_accept` is the media type of answers to requests that accept anything."""
        self._limits = limits
        self._v2 = v2
        self._offered = (default_accept, *(kind for kind in ANSWERS if kind != default_accept))

    def terms(self, headers: Mapping[bytes, bytes]) -> InvocationTerms:
        """Raises InvalidInput; NoRoute with 415 for a content type that is not read, 406 for an Accept that names
        nothing that is written."""
        media = media_of(headers.get(b"content-type"), JSON)
        identity = identity_of(headers)
        if media.type == TRITON:
            return InvocationTerms(media, JSON, json_size(media), identity, triton=True)
        if media.type == _RAW:
            media = Media(_BINARY, {})
        found = answer_media(media, headers, (*self._offered, TRITON))
        return InvocationTerms(media, JSON if found == TRITON else found, None, identity)

    def codec(self, model: ServedModel) -> InvocationCodec:
        return InvocationCodec(model, self._limits, self._v2.codec(model))


class InvocationCodec(DialectCodec):
    """Tables, arrays and lines are answered with bare rows, as SageMaker's own framework containers do."""

    def __init__(
        self, model: ServedModel, limits: Limits, v2: Codec[int | None, InferRequest]
    ) -> None:
        super().__init__(model, limits, v2, Dialect.BARE)

    def decode(self, body: bytes | memoryview, terms: DialectTerms) -> InferRequest:
        assert isinstance(terms, InvocationTerms)
        request = super().decode(body, terms)
        if terms.identity is not None and isinstance(request, BodyRequest):
            return msgspec.structs.replace(request, id=terms.identity)
        return request

    def encode(self, request: InferRequest, outputs: Tensors, candidate: Candidate) -> Response:
        response = super().encode(request, outputs, candidate)
        if isinstance(request, BodyRequest) or not response.lines:
            return response
        # Binary tensors behind JSON: where V2 has a header for the length of the JSON, SageMaker passes none on.
        size = int(response.lines.rpartition(b" ")[2])
        media = f"{TRITON};{JSON_SIZE}={size}"
        return Response(answer_form(candidate, media), response.parts)
