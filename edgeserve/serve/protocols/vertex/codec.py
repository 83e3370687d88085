"""Vertex AI's predictions: `{"instances", "parameters"}` to `{"predictions"}`, and the bodies of rawPredict as they are.

Sources: https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements, and what Google's CprModelServer
answers. A classifier or detector that is asked with AutoML's parameters answers in AutoML's form
(https://cloud.google.com/vertex-ai/docs/image-data/classification/interpret-results).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edgeserve.errors import InvalidInput
from edgeserve.postprocess import BoxesAnswer, ClassesAnswer
from edgeserve.serve.http.response import JSON
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.bodies.codec import BodyRequest
from edgeserve.serve.protocols.bodies.dialects import (
    Dialect,
    DialectCodec,
    DialectTerms,
    answer_media,
    json_size,
)
from edgeserve.serve.protocols.bodies.media import media_of
from edgeserve.serve.protocols.bodies.values import decoded_b64
from edgeserve.serve.protocols.codec import Codec, InferenceProtocol
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Tensors
from edgeserve.wire.text import parse_json

_TRITON = "application/vnd.vertex-ai-triton.binary+json"


class PredictBody(msgspec.Struct, frozen=True):
    """Rows, and how they are to be answered."""

    instances: list[Any]
    parameters: dict[str, Any] = {}


class PredictionsBody(msgspec.Struct, frozen=True):
    """A prediction for each instance."""

    predictions: list[Any]


class Vertex:
    """What protocols/inference.py serves. `wrapped`: bodies may be in the JSON of Google's REST client."""

    def __init__(
        self,
        limits: Limits,
        v2: InferenceProtocol[int | None, InferRequest],
        *,
        wrapped: bool = False,
    ) -> None:
        self._limits = limits
        self._v2 = v2
        self._wrapped = wrapped

    def terms(self, headers: Mapping[bytes, bytes]) -> DialectTerms:
        """Raises InvalidInput; NoRoute for what is not read or written."""
        media = media_of(headers.get(b"content-type"), "")
        if media.type == _TRITON:
            return DialectTerms(media, v2=json_size(media))
        return DialectTerms(media, answer_media(media, headers))

    def codec(self, model: ServedModel) -> VertexCodec:
        return VertexCodec(model, self._limits, self._v2.codec(model), wrapped=self._wrapped)


class _HttpBody(msgspec.Struct, frozen=True, rename="camel"):
    data: str = ""
    content_type: str = JSON


class _Wrapped(msgspec.Struct, frozen=True, rename="camel"):
    http_body: _HttpBody | None = None


class VertexCodec(DialectCodec):
    """Of one model."""

    def __init__(
        self,
        model: ServedModel,
        limits: Limits,
        v2: Codec[int | None, InferRequest],
        *,
        wrapped: bool,
    ) -> None:
        super().__init__(model, limits, v2)
        self._wrapped = wrapped

    def decode(self, body: bytes | memoryview, terms: DialectTerms) -> InferRequest:
        if self._wrapped and b'"httpBody"' in bytes(body[:4_096]):
            try:
                inner = msgspec.convert(parse_json(bytes(body)), _Wrapped).http_body
            except msgspec.ValidationError as error:
                raise InvalidInput(f"httpBody: {error}") from None
            if inner is not None:
                media = media_of(inner.content_type.encode("latin-1", "replace"))
                data = decoded_b64(inner.data, "httpBody.data")
                return super().decode(data, DialectTerms(media, terms.accept))
        return super().decode(body, terms)

    def _in_json(self, request: BodyRequest, outputs: Tensors) -> bytes:
        asked = request.options.top_k is not None or request.options.threshold is not None
        if request.form == Dialect.ROWS and asked and self.model.postprocessor.how is not None:
            found = self.model.postprocessor.answers(
                outputs, request.rows, request.frames, request.options
            )
            sizes = [(f.width, f.height) for f in request.frames]
            records = [
                _automl(each, sizes[at] if at < len(sizes) else None)
                for at, each in enumerate(found)
            ]
            return msgspec.json.encode({"predictions": records})
        return super()._in_json(request, outputs)


def _automl(answer: Any, size: tuple[int, int] | None) -> Any:
    """An answer as AutoML's models write it: boxes are x0, x1, y0, y1 as shares of the image's width and height."""
    if isinstance(answer, ClassesAnswer):
        found: tuple[Any, ...] = answer.classes
    elif isinstance(answer, BoxesAnswer):
        found = answer.boxes
    else:
        return answer
    record = {
        "ids": [str(each.index) for each in found],
        "displayNames": [each.label for each in found],
        "confidences": [each.score for each in found],
    }
    if isinstance(answer, BoxesAnswer):
        width, height = size or (1, 1)
        record["bboxes"] = [
            [b.box[0] / width, b.box[2] / width, b.box[1] / height, b.box[3] / height]
            for b in answer.boxes
        ]
    return record
