"""TorchServe's predictions: one row a request, as raw bytes, a form or JSON; answered as its own handlers answer.

Source: https://pytorch.org/serve/inference_api.html, and the handlers image_classifier and object_detector of TorchServe 0.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.postprocess import (
    Answer,
    BoxesAnswer,
    ClassesAnswer,
    EmbeddingAnswer,
)
from edgeserve.preprocess import is_image
from edgeserve.serve.http.response import JSON, Response
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.bodies.codec import BodyCodec, BodyRequest, answer
from edgeserve.serve.protocols.bodies.dialects import FORM, NPY
from edgeserve.serve.protocols.bodies.long import general
from edgeserve.serve.protocols.bodies.media import Media, form_parts, media_of
from edgeserve.serve.protocols.bodies.tables import as_inputs, from_npy
from edgeserve.serve.protocols.bodies.values import Read, decoded_b64
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Tensors
from edgeserve.wire.text import check_depth

# The names of the part that its handlers read.
_PARTS: Final = ("data", "body")
_BYTES: Final = "application/octet-stream"
# One row was asked for, which is answered without a list.
_ONE: Final = "row"
_ROWS: Final = "rows"


class TorchServe:
    """What protocols/inference.py serves. Its terms are the body's media type."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def terms(self, headers: Mapping[bytes, bytes]) -> Media:
        return media_of(headers.get(b"content-type"), _BYTES)

    def codec(self, model: ServedModel) -> TorchServeCodec:
        return TorchServeCodec(model, self._limits)


class TorchServeCodec(BodyCodec):
    """Of one model."""

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        super().__init__(model, limits)
        self._outputs = model.postprocessor.outputs

    def text_bytes(self, size: int, terms: Media) -> int:
        return 0 if terms.type == NPY else super().text_bytes(size, terms)

    def decode(self, body: bytes | memoryview, terms: Media) -> BodyRequest:
        """Raises InvalidInput."""
        if terms.type == FORM:
            body, terms = _part(body, terms)
        if is_image(body) or terms.type.startswith("image/"):
            return self._request(self.reader.read_images([body]), _ONE)
        if bytes(body[:6]) == b"\x93NUMPY":
            inputs = as_inputs({"": from_npy(body)}, self.interface)
            rows = self.interface.check(inputs)
            read = Read(inputs, rows, whole=not self.interface.max_batch)
            return self._request(read, _ONE if rows == 1 else _ROWS)
        data = bytes(body)
        text = self._as_text(data, terms)
        if text is not None:
            return text
        check_depth(data, self.limits.json_depth)
        return self._of_json(general(data))

    def _as_text(self, data: bytes, terms: Media) -> BodyRequest | None:
        """A body that is not JSON: base64 of an image, or what a model of texts reads."""
        if terms.type == JSON or terms.type.endswith("+json"):
            return None
        if self.model.images is not None and data[:1] not in (b"{", b"["):
            image = decoded_b64(data.decode("latin-1").strip(), "the body")
            return self._request(self.reader.read_images([image]), _ONE)
        specs = self.interface.inputs
        if len(specs) == 1 and specs[0].dtype == "BYTES" and data[:1] not in (b"{", b"["):
            return self._request(self.reader.listed([_nested(_text(data), self._rank())]), _ONE)
        return None

    def _of_json(self, document: Any) -> BodyRequest:
        if isinstance(document, dict):
            if "instances" in document:
                return self._request(self.reader.listed(document["instances"]), _ROWS)
            for key in (*_PARTS, "inputs"):
                if key in document and key not in {s.name for s in self.interface.inputs}:
                    return self._of_json(document[key])
            if self.reader.encoded_images([document]) is not None:
                return self._request(self.reader.listed([document]), _ONE)
            return self._request(*self._named(document))
        if isinstance(document, str) and self.model.images is not None:
            return self._request(self.reader.listed([document]), _ONE)
        if _depth(document) > self._rank():
            return self._request(self.reader.listed(document), _ROWS)
        return self._request(self.reader.listed([document]), _ONE)

    def _named(self, document: dict[str, Any]) -> tuple[Read, str]:
        """Values by input: of one row if the first one has no axis for rows."""
        name, value = next(iter(document.items()), ("", None))
        spec = self.interface.input(name)
        rank = len(spec.shape) - (1 if self.interface.max_batch else 0)
        if _depth(value) > rank:
            return self.reader.named(document), _ROWS
        return self.reader.listed([document]), _ONE

    def _rank(self) -> int:
        """How deep the lists of a row of the first input are."""
        spec = self.interface.inputs[0]
        return len(spec.shape) - (1 if self.interface.max_batch else 0)

    def _request(self, read: Read, form: str) -> BodyRequest:
        return self.request(read, form, outputs=self._outputs)

    def encode(self, request: BodyRequest, outputs: Tensors, candidate: Candidate) -> Response:
        wanted = {name: outputs[name] for name in request.outputs}
        if self.model.postprocessor.how is None:
            rows = self.writer.rows(request.outputs, wanted, request.rows)
            return answer(candidate, [rows if request.form == _ROWS else rows[1:-1]])
        found = self.model.postprocessor.answers(wanted, request.rows, request.frames)
        written: Any = [_written(each) for each in found]
        return answer(
            candidate, [msgspec.json.encode(written if request.form == _ROWS else written[0])]
        )


def _written(found: Answer) -> Any:
    """As TorchServe's handlers of the task write it."""
    if isinstance(found, ClassesAnswer):
        return {each.label: each.score for each in found.classes}
    if isinstance(found, BoxesAnswer):
        return [{each.label: list(each.box), "score": each.score} for each in found.boxes]
    if isinstance(found, EmbeddingAnswer):
        return found.embedding
    return found


def _part(body: bytes | memoryview, terms: Media) -> tuple[memoryview, Media]:
    """The last part of a form that is called data or body, or the only part. Raises InvalidInput."""
    parts = form_parts(body, terms.parameters.get("boundary"))
    named = [part for part in parts if part.name in _PARTS] or (parts if len(parts) == 1 else [])
    if not named:
        names = ", ".join(sorted({part.name for part in parts})) or "none"
        raise InvalidInput(f"multipart/form-data: expected a part called data or body, got {names}")
    return named[-1].data, Media(named[-1].media or _BYTES, {})


def _depth(value: Any) -> int:
    """How deep a value's lists are."""
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _nested(text: str, rank: int) -> Any:
    value: Any = text
    for _ in range(rank):
        value = [value]
    return value


def _text(data: bytes) -> str:
    """Raises InvalidInput."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidInput("the body is not text in UTF-8") from None
