"""Photographs to models that take images: as the body of `infer`, and of `predict`, which answers people, not programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.postprocess import Answer, AnswerOptions
from edgeserve.preprocess import is_image
from edgeserve.serve.http.response import JSON, Refusal, Response
from edgeserve.serve.http.route import NoRoute
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.bodies.codec import (
    IMAGE_MOST,
    IMAGE_WORK,
    BodyCodec,
    BodyRequest,
    answer,
)
from edgeserve.serve.protocols.bodies.media import QUERY, Media, form_parts, media_of, query_of
from edgeserve.serve.protocols.bodies.values import Read
from edgeserve.serve.protocols.v2.codec import V2, V2Codec
from edgeserve.serve.protocols.v2.request import V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Tensors
from edgeserve.wire.text import as_object, check_depth, parse_json

_FORM: Final = "multipart/form-data"
_BINARY: Final = "application/octet-stream"


def sends_image(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the content type is that of an image, or of a form with one."""
    kind = headers.get(b"content-type", b"").lower()
    return kind.startswith((b"image/", b"multipart/form-data", b"application/x-image"))


def images_in(body: bytes | memoryview, media: Media) -> list[bytes | memoryview]:
    """The images of a body: itself, or the parts of a form that have data. Raises InvalidInput."""
    if media.type != _FORM:
        return [body]
    parts = form_parts(body, media.parameters.get("boundary"))
    found: list[bytes | memoryview] = [part.data for part in parts if is_image(part.data)]
    if not found:
        raise InvalidInput("multipart/form-data: no part is an image")
    return found


class ImageInfer:
    """`infer` with an image as the body. Its terms are the body's media type."""

    def __init__(self, v2: V2) -> None:
        self._v2 = v2

    def terms(self, headers: Mapping[bytes, bytes]) -> Media:
        return media_of(headers.get(b"content-type"))

    def codec(self, model: ServedModel) -> ImageInferCodec:
        return ImageInferCodec(self._v2.codec(model))


class ImageInferCodec:
    """Reads images into the model's input; answers as `infer` does."""

    def __init__(self, v2: V2Codec) -> None:
        self._v2 = v2
        self.written_bytes = v2.written_bytes
        self.encode = v2.encode

    def check_size(self, size: int, terms: Media) -> None:
        """The limit of all bodies holds."""

    def text_bytes(self, size: int, terms: Media) -> int:
        return min(max(size, IMAGE_WORK), IMAGE_MOST)

    def decode(self, body: bytes | memoryview, terms: Media) -> V2Request:
        return self._v2.of_images(images_in(body, terms))


class PredictTerms(msgspec.Struct, frozen=True):
    """The body's media type, and what the query asks for."""

    media: Media
    options: AnswerOptions


class Predict:
    """`predict`: an image or JSON in, an answer for people out."""

    def __init__(self, v2: V2, limits: Limits) -> None:
        self._v2 = v2
        self._limits = limits

    def terms(self, headers: Mapping[bytes, bytes]) -> PredictTerms:
        """Raises InvalidInput for a query that is not understood; NoRoute for a body that is not read."""
        media = media_of(headers.get(b"content-type"), "")
        kinds = (
            "",
            JSON,
            "text/json",
            "text/plain",
            _FORM,
            _BINARY,
            "application/x-www-form-urlencoded",
        )
        if not (sends_image(headers) or media.type in kinds or media.type.endswith("+json")):
            message = f"the content type {media.type:.60} is not read: send an image, a form with one, or JSON"
            raise NoRoute(Refusal(415, "content_type", message))
        return PredictTerms(media, _options(query_of(headers.get(QUERY, b""))))

    def codec(self, model: ServedModel) -> PredictCodec:
        return PredictCodec(model, self._limits, self._v2.codec(model))


class PredictCodec(BodyCodec):
    """Reads images, v2's JSON, and rows of values; answers with what the bundle's postprocess makes of the outputs."""

    def __init__(self, model: ServedModel, limits: Limits, v2: V2Codec) -> None:
        super().__init__(model, limits)
        self._v2 = v2
        self._start = b'{"model_name":%s,"model_version":%s,' % (
            orjson.dumps(model.name),
            orjson.dumps(model.version),
        )
        self._needed = model.postprocessor.outputs

    def text_bytes(self, size: int, terms: PredictTerms) -> int:
        if terms.media.type.startswith("image/") or terms.media.type in (_FORM, _BINARY):
            return min(max(size, IMAGE_WORK), IMAGE_MOST)
        return super().text_bytes(size, terms)

    def decode(self, body: bytes | memoryview, terms: PredictTerms) -> BodyRequest:
        if terms.media.type == _FORM or is_image(body) or terms.media.type.startswith("image/"):
            read = self.reader.read_images(images_in(body, terms.media))
            return self._made(read, terms.options)
        data = bytes(body)
        check_depth(data, self.limits.json_depth)
        document = as_object(parse_json(data), "request")
        options = _with(terms.options, document.get("parameters"))
        inputs = document.get("inputs")
        if (
            isinstance(inputs, list)
            and inputs
            and all(isinstance(e, dict) and "name" in e for e in inputs)
        ):
            request = self._v2.decode(data, None)
            read = Read(request.inputs, request.rows, whole=not self.interface.max_batch)
        elif "inputs" in document:
            read = self.reader.named(inputs)
        elif "instances" in document:
            read = self.reader.listed(document["instances"])
        else:
            values = {name: v for name, v in document.items() if name not in ("parameters", "id")}
            images = self.reader.encoded_images([values])
            read = self.reader.named(values) if images is None else self.reader.read_images(images)
        return self._made(read, options)

    def _made(self, read: Read, options: AnswerOptions) -> BodyRequest:
        return self.request(read, "predict", outputs=self._needed, options=options)

    def encode(self, request: BodyRequest, outputs: Tensors, candidate: Candidate) -> Response:
        found = self.model.postprocessor.answers(
            {name: outputs[name] for name in request.outputs},
            request.rows,
            request.frames,
            request.options,
        )
        about = orjson.dumps(
            {
                "edgeserve_device": candidate.device,
                "edgeserve_runtime": candidate.runtime,
                "edgeserve_variant": candidate.variant,
            }
        )
        body = b'%s"parameters":%s,%s}' % (self._start, about, self._written(found))
        return answer(candidate, [body])

    def _written(self, found: list[Answer]) -> bytes:
        """The fields of the only answer, or all in a list. Numbers that are not finite become null."""
        if len(found) == 1:
            return msgspec.json.encode(found[0])[1:-1]
        return b'"predictions":%s' % msgspec.json.encode(found)


def _options(query: Mapping[str, str]) -> AnswerOptions:
    """Raises InvalidInput."""
    values: dict[str, Any] = {}
    for name in ("top_k", "threshold"):
        if name in query:
            try:
                values[name] = int(query[name]) if name == "top_k" else float(query[name])
            except ValueError:
                raise InvalidInput(f"{name}: expected a number, got {query[name]!r:.40}") from None
    return _with(AnswerOptions(), values)


def _with(options: AnswerOptions, parameters: Any) -> AnswerOptions:
    """With the parameters of JSON in their place. Raises InvalidInput."""
    if parameters is None:
        return options
    given = as_object(parameters, "parameters")
    top_k, threshold = given.get("top_k", options.top_k), given.get("threshold", options.threshold)
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InvalidInput(f"top_k: expected a count of 1 or more, got {top_k!r:.40}")
    if threshold is not None and (
        isinstance(threshold, bool)
        or not isinstance(threshold, int | float)
        or not 0 <= threshold <= 1
    ):
        raise InvalidInput(f"threshold: expected a number from 0 to 1, got {threshold!r:.40}")
    return AnswerOptions(top_k, None if threshold is None else float(threshold))
