"""Bodies of clients that are used to other servers, told apart by their media type, then by the keys of their JSON.

Clouds pass bodies on as they are, so that their containers see what each framework's clients send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
import orjson

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.postprocess import AnswerOptions, TensorsAnswer
from edgeserve.preprocess import is_image
from edgeserve.serve.http.response import JSON, Refusal, Response
from edgeserve.serve.http.route import NoRoute
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.bodies.codec import BodyCodec, BodyRequest, answer
from edgeserve.serve.protocols.bodies.long import LONG_BYTES, fields_of, general
from edgeserve.serve.protocols.bodies.media import Media, accepted, form_parts
from edgeserve.serve.protocols.bodies.tables import (
    as_inputs,
    from_csv,
    from_json_lines,
    from_npy,
    from_npz,
    to_csv,
    to_npy,
    to_npz,
)
from edgeserve.serve.protocols.bodies.values import Read, decoded_b64
from edgeserve.serve.protocols.codec import Codec
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Tensors
from edgeserve.wire.text import check_depth, kind_of

CSV: Final = "text/csv"
NPY: Final = "application/x-npy"
NPZ: Final = "application/x-npz"
JSON_LINES: Final = "application/jsonlines"
FORM: Final = "multipart/form-data"
# The parameter of a content type that Triton's binary bodies have behind clouds.
JSON_SIZE: Final = "json-header-size"
_BINARY: Final = "application/octet-stream"
# What an answer may be; the first is the usual one.
ANSWERS: Final = (JSON, CSV, NPY, NPZ, JSON_LINES, "application/x-jsonlines")
# An array is used as it is, or takes that much less time than text does.
_CONVERSION: Final = 64
_LINES: Final = frozenset(
    {JSON_LINES, "application/x-jsonlines", "application/json-lines", "application/x-ndjson"}
)
_TEXTS: Final = frozenset(
    {"", JSON, "text/json", "text/plain", "application/x-www-form-urlencoded"}
)


class Dialect(StrEnum):
    """How a request was written, which its answer follows."""

    ROWS = "instances"  # {"instances": rows} -> {"predictions": rows}
    COLUMNS = "inputs"  # {"inputs": values by name} -> {"outputs": values by name}
    RESULTS = "Inputs"  # {"Inputs": {"data": rows}} -> {"Results": rows}
    BARE = "bare"  # rows, or {"data": rows}, {"input_data": ...} -> rows
    IMAGE = "image"  # an image -> what is seen on it
    TABLE = "table"  # a table, an array -> {"predictions": rows}


class DialectTerms(msgspec.Struct, frozen=True):
    """What the head says: the media type of the body and of the answer; `v2`: what V2's codec takes, if it is one of
    its binary bodies."""

    media: Media
    accept: str = JSON
    v2: int | None = None


class DialectCodec(BodyCodec):
    """Reads every dialect for one model. Bodies of the Open Inference Protocol go to that protocol's own codec."""

    def __init__(
        self,
        model: ServedModel,
        limits: Limits,
        v2: Codec[int | None, InferRequest],
        usual: Dialect = Dialect.ROWS,
    ) -> None:
        """`usual` is how tables, arrays and lines are answered in JSON."""
        super().__init__(model, limits)
        self._v2 = v2
        self._usual = usual
        self._has_texts = any(spec.dtype == "BYTES" for spec in self.interface.inputs)

    def check_size(self, size: int, terms: DialectTerms) -> None:
        if terms.v2 is not None:
            self._v2.check_size(size, terms.v2)

    def text_bytes(self, size: int, terms: DialectTerms) -> int:
        if terms.v2 is not None:
            return self._v2.text_bytes(size, terms.v2)
        if terms.media.type == NPY and not self._has_texts:
            return size // _CONVERSION
        return super().text_bytes(size, terms)

    # reading

    def decode(self, body: bytes | memoryview, terms: DialectTerms) -> InferRequest:
        """Raises InvalidInput; NoRoute is for the head alone."""
        if terms.v2 is not None:
            return self._v2.decode(body, terms.v2)
        kind = terms.media.type
        if kind == FORM:
            return self._of_form(body, terms)
        if kind.startswith("image/") or kind == "application/x-image":
            return self._image([body], terms)
        if kind == _BINARY and is_image(body) and self.model.images is not None:
            return self._image([body], terms)
        if kind == CSV:
            header = terms.media.parameters.get("header", "").lower() in ("present", "true", "1")
            return self._table(
                from_csv(body, self.interface, self.reader.numbers, header=header), terms
            )
        if kind in (NPY, NPZ) or (kind == _BINARY and bytes(body[:6]) == b"\x93NUMPY"):
            arrays = from_npz(body, self.limits) if kind == NPZ else {"": from_npy(body)}
            return self._table(as_inputs(arrays, self.interface), terms)
        if kind in _LINES:
            return self._of_lines(bytes(body), terms)
        return self._of_json(body, terms)

    def _of_json(self, body: bytes | memoryview, terms: DialectTerms) -> InferRequest:
        data = bytes(body)
        check_depth(data, self.limits.json_depth)
        start = data[:64].lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
        if start == b"[":
            return self.request(self.reader.rows(data), Dialect.BARE, accept=terms.accept)
        document = _envelope(data)
        if document is None:
            return self.of_document(general(data), terms.accept, data)
        read: Read | None = None
        form = Dialect.BARE
        if _is_list(document.instances):
            read, form = self.reader.rows(document.instances), Dialect.ROWS
        elif _is_list(document.data):
            read = self.reader.rows(document.data)
        elif _is_v2(document.inputs):
            return self._v2.decode(data, None)
        elif len(data) > LONG_BYTES:
            read, form = self._long(document, data)
        if read is None:
            return self.of_document(general(data), terms.accept, data)
        options = _options(document.parameters)
        return self.request(read, form, accept=terms.accept, options=options)

    def _long(self, document: _Envelope, data: bytes) -> tuple[Read | None, Dialect]:
        """Of what is too long to become objects; None for another form."""
        if type(document.inputs) is msgspec.Raw:
            return self.reader.columns(document.inputs), Dialect.COLUMNS
        for value, form in (
            (document.Inputs, Dialect.RESULTS),
            (document.input_data, Dialect.BARE),
            (document.dataframe_split, Dialect.BARE),
        ):
            if type(value) is msgspec.Raw:
                rows = (fields_of(value) or {}).get("data", value)
                return (self.reader.rows(rows), form) if _is_list(rows) else (None, form)
        if (fields_of(data) or {"": None}).keys() <= {spec.name for spec in self.interface.inputs}:
            return self.reader.columns(data), Dialect.COLUMNS
        return None, Dialect.BARE

    def of_document(self, document: Any, accept: str, text: bytes = b"") -> InferRequest:
        """JSON that has been parsed; `text` is what it was parsed from. Raises InvalidInput."""
        if isinstance(document, list):
            return self.request(self.reader.listed(document), Dialect.BARE, accept=accept)
        if not isinstance(document, dict):
            raise InvalidInput(f"expected a JSON object or list, got {kind_of(document)}")
        options = _options(document.get("parameters"))

        def made(read: Read, form: Dialect) -> InferRequest:
            return self.request(read, form, accept=accept, options=options)

        if "instances" in document:
            return made(self.reader.listed(document["instances"]), Dialect.ROWS)
        if "inputs" in document:
            value = document["inputs"]
            if _are_v2(value):
                return self._v2.decode(text or orjson.dumps(document), None)
            return made(self.reader.named(value), Dialect.COLUMNS)
        if "Inputs" in document:
            value = document["Inputs"]
            rows = value.get("data") if isinstance(value, dict) and "data" in value else value
            return made(self.reader.listed(_records(rows)), Dialect.RESULTS)
        for key in ("input_data", "dataframe_split", "dataframe_records", "data"):
            if key in document:
                value = _records(document[key])
                if isinstance(value, str):
                    return self._image(
                        [decoded_b64(value, key)], DialectTerms(Media(JSON, {}), accept)
                    )
                if isinstance(value, dict):
                    return made(self.reader.named(value), Dialect.BARE)
                return made(self.reader.listed(value), Dialect.BARE)
        if document.keys() & {"b64", "image", "image_bytes"} and self.model.images is not None:
            return self.request(
                self.reader.listed([document]), Dialect.IMAGE, accept=accept, options=options
            )
        if document.keys() <= {spec.name for spec in self.interface.inputs} and document:
            return made(self.reader.named(document), Dialect.COLUMNS)
        names = ", ".join(f"'{spec.name}'" for spec in self.interface.inputs)
        raise InvalidInput(
            f"the JSON has the fields {sorted(document)[:8]}: expected instances, inputs, or the inputs {names}"
        )

    def _of_lines(self, data: bytes, terms: DialectTerms) -> InferRequest:
        if len(data) > LONG_BYTES:
            check_depth(data, self.limits.json_depth)
            lines = [line for line in data.split(b"\n") if line.strip()]
            read = self.reader.rows(b"[%b]" % b",".join(lines))
        else:
            read = self.reader.listed(from_json_lines(data, self.limits))
        return self.request(read, self._usual, accept=terms.accept)

    def _of_form(self, body: bytes | memoryview, terms: DialectTerms) -> InferRequest:
        parts = form_parts(body, terms.media.parameters.get("boundary"))
        files = [part for part in parts if part.data]
        if not files:
            raise InvalidInput("multipart/form-data: the form has no part with data")
        if all(is_image(part.data) for part in files):
            return self._image([part.data for part in files], terms)
        if len(files) == 1:
            kind = files[0].media or _BINARY
            inner = msgspec.structs.replace(terms, media=Media(kind, {}))
            return self.decode(files[0].data, inner if kind != FORM else terms)
        texts = {part.name: general(bytes(part.data)) for part in files}
        return self.request(self.reader.named(texts), Dialect.COLUMNS, accept=terms.accept)

    def _image(self, images: list[Any], terms: DialectTerms) -> InferRequest:
        read = self.reader.read_images(images)
        return self.request(read, Dialect.IMAGE, accept=terms.accept)

    def _table(self, inputs: Tensors, terms: DialectTerms) -> InferRequest:
        rows = self.interface.check(inputs)
        read = Read(inputs, rows, whole=not self.interface.max_batch)
        return self.request(read, self._usual, accept=terms.accept)

    # writing

    def written_bytes(self, request: InferRequest, outputs: Tensors) -> int:
        if not isinstance(request, BodyRequest):
            return self._v2.written_bytes(request, outputs)
        return super().written_bytes(request, outputs)

    def encode(self, request: InferRequest, outputs: Tensors, candidate: Candidate) -> Response:
        """Raises InvalidInput for outputs that the wanted media type cannot hold."""
        if not isinstance(request, BodyRequest):
            return self._v2.encode(request, outputs, candidate)
        if request.accept != JSON:
            return answer(candidate, [self._in_media(request, outputs)], request.accept)
        return answer(candidate, [self._in_json(request, outputs)])

    def _in_json(self, request: BodyRequest, outputs: Tensors) -> bytes:
        if request.form == Dialect.COLUMNS:
            return b'{"outputs":%s}' % self.writer.columns(request.outputs, outputs)
        if request.form == Dialect.IMAGE:
            return self.seen(request, outputs)
        rows = self.writer.rows(request.outputs, outputs, request.rows)
        if request.form == Dialect.BARE:
            return rows
        key = "Results" if request.form == Dialect.RESULTS else "predictions"
        return b'{"%s":%s}' % (key.encode(), rows)

    def seen(self, request: BodyRequest, outputs: Tensors) -> bytes:
        """What is on images: an answer for people for one, a list of them for several; tensors of a model without a
        task."""
        found = self.model.postprocessor.answers(
            outputs, request.rows, request.frames, request.options
        )
        if isinstance(found[0], TensorsAnswer):
            rows = self.writer.rows(request.outputs, outputs, request.rows)
            return b'{"predictions":%s}' % rows
        if len(found) == 1:
            return msgspec.json.encode(found[0])
        return msgspec.json.encode({"predictions": found})

    def _in_media(self, request: BodyRequest, outputs: Tensors) -> bytes:
        media = request.accept
        if media == NPZ:
            return to_npz({n: self.writer.readable(n, outputs[n]) for n in request.outputs})
        if media in _LINES:
            return self.writer.lines(request.outputs, outputs, request.rows)
        if len(request.outputs) != 1:
            raise InvalidInput(
                f"the model has {len(request.outputs)} outputs, which {media} cannot hold: accept {JSON} or {NPZ}"
            )
        (name,) = request.outputs
        array = self.writer.readable(name, outputs[name])
        if media == NPY:
            return to_npy(array)
        return to_csv(array[None] if request.whole else array, self.limits.output_bytes)


class _Envelope(msgspec.Struct):
    """The usual keys, whose values are not parsed yet."""

    instances: msgspec.Raw = msgspec.UNSET  # type: ignore[assignment]  # a union would be parsed
    inputs: msgspec.Raw = msgspec.UNSET  # type: ignore[assignment]  # likewise
    data: msgspec.Raw = msgspec.UNSET  # type: ignore[assignment]  # likewise
    Inputs: msgspec.Raw = msgspec.UNSET  # type: ignore[assignment]  # likewise
    input_data: msgspec.Raw = msgspec.UNSET  # type: ignore[assignment]  # likewise
    dataframe_split: msgspec.Raw = msgspec.UNSET  # type: ignore[assignment]  # likewise
    parameters: Any = None


_DECODER: Final = msgspec.json.Decoder(_Envelope)


def _envelope(data: bytes) -> _Envelope | None:
    """None for JSON that is read as general objects, such as that with NaN."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _options(parameters: Any) -> AnswerOptions:
    """`top_k` and `threshold` of parameters, by the names that clients of other servers use, too."""
    if not isinstance(parameters, dict):
        return AnswerOptions()

    def number(names: tuple[str, ...], kind: Callable[[Any], Any]) -> Any:
        for name in names:
            value = parameters.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
                return kind(value)
        return None

    return AnswerOptions(
        number(("top_k", "maxPredictions"), int),
        number(("threshold", "confidenceThreshold"), float),
    )


def _is_list(value: Any) -> bool:
    """Whether a value that is not parsed yet is there, and a list."""
    return type(value) is msgspec.Raw and bytes(memoryview(value)[:1]) == b"["


def _is_v2(inputs: msgspec.Raw) -> bool:
    """Whether the inputs, not parsed yet, are a list of V2's tensors."""
    if not _is_list(inputs) or b'"datatype"' not in bytes(inputs):
        return False
    return bytes(memoryview(inputs)[1:64]).lstrip()[:1] == b"{"


def _are_v2(value: Any) -> bool:
    """As `_is_v2`, of inputs that have been parsed."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(entry, dict) and "datatype" in entry and "name" in entry for entry in value
        )
    )


def _records(value: Any) -> Any:
    """Rows of a data frame, as pandas and MLflow write one: `{"columns", "index", "data"}`; whatever else, as it is."""
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        return value["data"]
    return value


def answer_media(
    media: Media, headers: Mapping[bytes, bytes], offered: Iterable[str] = ANSWERS
) -> str:
    """The one of the `offered` media types that a body of type `media` is answered in. Raises NoRoute with 415 for a
    body that is not read, 406 for an Accept that names nothing that is written."""
    if not _is_read(media.type):
        raise NoRoute(
            Refusal(
                415,
                "content_type",
                f"the content type {media.type:.60} is not read: send {JSON}, {CSV}, {NPY}, {NPZ}, {JSON_LINES}, "
                "an image, or a form with one",
            )
        )
    accept = accepted(headers.get(b"accept"), offered)
    if accept is None:
        raise NoRoute(
            Refusal(
                406,
                "content_type",
                f"answers are {', '.join(ANSWERS[:-1])}; Accept names none of them",
            )
        )
    return accept


def json_size(media: Media) -> int:
    """How many bytes of a body are JSON, by the content type of one of Triton's binary bodies. Raises InvalidInput."""
    text = media.parameters.get(JSON_SIZE, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidInput(
            f"{media.type}: expected {JSON_SIZE}=N in the content type, got {text!r:.40}"
        )
    return int(text)


def _is_read(kind: str) -> bool:
    """Whether bodies of a media type are read."""
    return (
        kind in _TEXTS
        or kind in _LINES
        or kind in (CSV, NPY, NPZ, FORM, _BINARY, "application/x-image")
        or kind.startswith("image/")
        or kind.endswith("+json")
    )
