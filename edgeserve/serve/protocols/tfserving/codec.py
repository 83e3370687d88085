"""TF Serving's REST bodies: predict in rows and columns, classify, regress; and what KServe's v1 clients send, which is the same.

Source: https://www.tensorflow.org/tfx/serving/api_rest, and what TF Serving itself answered where that says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.bundle import Candidate, Classification
from edgeserve.errors import InvalidInput
from edgeserve.postprocess.classify import probabilities
from edgeserve.postprocess.rows import label_of
from edgeserve.preprocess import is_image
from edgeserve.serve.http.response import Response
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.bodies.codec import BodyCodec, BodyRequest, answer
from edgeserve.serve.protocols.bodies.long import general
from edgeserve.serve.protocols.bodies.values import Read
from edgeserve.serve.protocols.bodies.written import ValueWriter
from edgeserve.serve.protocols.tfserving.events import (
    EventMode,
    EventRequest,
    as_event,
    data_of,
    event_of,
    mode_of,
)
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import DTYPES, Tensors
from edgeserve.wire.text import as_object, check_depth, kind_of, parse_json

SIGNATURE: Final = "serving_default"
_BOM: Final = b"\xef\xbb\xbf"
_UNSET: Final = msgspec.UNSET


class Method(StrEnum):
    """What is asked of a model."""

    PREDICT = "predict"
    CLASSIFY = "classify"
    REGRESS = "regress"


class _Form(StrEnum):
    ROWS = "instances"
    COLUMNS = "inputs"
    EXAMPLES = "examples"


class _Body(msgspec.Struct):
    """The fields of a request, whose values are not parsed yet."""

    signature_name: str | None = None
    instances: msgspec.Raw = _UNSET  # type: ignore[assignment]  # a union would be parsed
    inputs: msgspec.Raw = _UNSET  # type: ignore[assignment]  # likewise
    examples: msgspec.Raw = _UNSET  # type: ignore[assignment]  # likewise
    context: msgspec.Raw = _UNSET  # type: ignore[assignment]  # likewise


_DECODER: Final = msgspec.json.Decoder(_Body)


class PredictRow(msgspec.Struct, frozen=True):
    """Rows as `instances`, or whole inputs as `inputs`."""

    signature_name: str = ""
    instances: list[Any] = []
    inputs: Any = None


class PredictionsRow(msgspec.Struct, frozen=True):
    """`predictions` for rows, `outputs` for columns."""

    predictions: list[Any] = []
    outputs: Any = None


class TfServing:
    """What protocols/inference.py serves, of one method. Headers tell whether the body is an event; the content type is
    ignored otherwise."""

    def __init__(self, limits: Limits, method: Method) -> None:
        self._limits = limits
        self._method = method

    def terms(self, headers: Mapping[bytes, bytes]) -> EventMode | None:
        """How the body is an event, as KServe's clients may send one."""
        return mode_of(headers)

    def codec(self, model: ServedModel) -> TfServingCodec:
        return TfServingCodec(model, self._limits, self._method)


class TfServingCodec(BodyCodec):
    """Of one model and method."""

    def __init__(self, model: ServedModel, limits: Limits, method: Method) -> None:
        super().__init__(model, limits)
        self.writer = ValueWriter(
            self.interface, "token", lambda name: name.endswith("_bytes"), limits.output_bytes
        )
        self._method = method

    def decode(self, body: bytes | memoryview, terms: EventMode | None) -> BodyRequest:
        """Raises InvalidInput."""
        if terms is None:
            return self._read(body)
        if terms is EventMode.STRUCTURED:
            body = data_of(body, self.limits.json_depth)
        return as_event(self._read(body), terms)

    def _read(self, body: bytes | memoryview) -> BodyRequest:
        if self.model.images is not None and is_image(body):
            return self.request(self.reader.read_images([body]), _Form.ROWS)
        data = bytes(body).removeprefix(_BOM)
        check_depth(data, self.limits.json_depth)
        fields = _fields(data)
        check_signature(fields.signature_name)
        if self._method is not Method.PREDICT:
            return self.request(self._examples(fields), _Form.EXAMPLES, outputs=self._scores())
        rows, columns = _given(fields.instances), _given(fields.inputs)
        if rows == columns:
            raise InvalidInput(
                "expected one of 'instances' and 'inputs', got " + ("both" if rows else "neither")
            )
        if rows:
            return self.request(self.reader.rows(fields.instances), _Form.ROWS)
        return self.request(self.reader.columns(fields.inputs, ignore_unknown=True), _Form.COLUMNS)

    def encode(self, request: BodyRequest, outputs: Tensors, candidate: Candidate) -> Response:
        response = self._written(request, outputs, candidate)
        if isinstance(request, EventRequest):
            return event_of(response, self.model.name, request.mode)
        return response

    def _written(self, request: BodyRequest, outputs: Tensors, candidate: Candidate) -> Response:
        if request.form == _Form.EXAMPLES:
            results = (
                self._classified(request, outputs)
                if self._method is Method.CLASSIFY
                else self._regressed(request, outputs)
            )
            return answer(candidate, [b'{"results":%s}' % results])
        if request.form == _Form.COLUMNS:
            return answer(
                candidate, [b'{"outputs":%s}' % self.writer.columns(request.outputs, outputs)]
            )
        rows = self.writer.rows(request.outputs, outputs, request.rows)
        return answer(candidate, [b'{"predictions":%s}' % rows])

    # classify and regress

    def _examples(self, fields: _Body) -> Read:
        """Rows of features by input, with those of `context` where a row has none. Raises InvalidInput."""
        if not _given(fields.examples):
            raise InvalidInput(f"expected 'examples', as {self._method} has them")
        examples = general(bytes(fields.examples))
        if not isinstance(examples, list) or not examples:
            raise InvalidInput("examples: expected a list of objects with at least one")
        shared: dict[str, Any] = {}
        if _given(fields.context):
            shared = as_object(parse_json(bytes(fields.context)), "context")
        rows = [shared | as_object(row, f"examples[{at}]") for at, row in enumerate(examples)]
        return self.reader.listed([self._features(row) for row in rows])

    def _features(self, row: dict[str, Any]) -> dict[str, Any]:
        """A feature of one number fits an input whose rows are lists of one."""
        found = {}
        if self.model.images is not None and self.reader.encoded_images([row]) is not None:
            return row
        for name, value in row.items():
            spec = self.interface.input(name)
            rank = len(spec.shape) - (1 if self.interface.max_batch else 0)
            flat = isinstance(value, list) and len(value) == 1 and not rank
            found[name] = value[0] if flat else [value] if rank and _is_scalar(value) else value
        return found

    def _scores(self) -> tuple[str, ...]:
        """The output that classes or numbers are read from. Raises InvalidInput."""
        how = self.model.postprocessor.how
        if isinstance(how, Classification):
            return (how.output,)
        numbers = [s.name for s in self.interface.outputs if DTYPES[s.dtype].kind in "iuf"]
        if len(numbers) != 1:
            raise InvalidInput(
                f"{self._method} needs a model with one output of numbers, this one has {len(numbers)}: "
                "ask with predict"
            )
        return (numbers[0],)

    def _classified(self, request: BodyRequest, outputs: Tensors) -> bytes:
        (name,) = request.outputs
        how = self.model.postprocessor.how
        labels = self.model.class_names.get(name, ())
        results = []
        for row in self._rows(name, request, outputs):
            scores = (
                probabilities(row, how) if isinstance(how, Classification) else row.astype(float)
            )
            results.append([[label_of(i, labels), float(s)] for i, s in enumerate(scores)])
        return msgspec.json.encode(results)

    def _regressed(self, request: BodyRequest, outputs: Tensors) -> bytes:
        (name,) = request.outputs
        rows = self._rows(name, request, outputs)
        if any(row.size != 1 for row in rows):
            raise InvalidInput(
                f"regress needs one number a row, output '{name}' has {rows[0].size}: ask with predict"
            )
        return self.writer.value(name, np.array([row[0] for row in rows], outputs[name].dtype))

    def _rows(self, name: str, request: BodyRequest, outputs: Tensors) -> list[Any]:
        array = outputs[name]
        if request.whole:
            return [array.reshape(-1)]
        if not array.ndim or len(array) != request.rows:
            raise InvalidInput(f"output '{name}' does not have a row for each example")
        return list(array.reshape(request.rows, -1))


def check_signature(name: str | None) -> None:
    """A bundle has one signature. Raises InvalidInput for another one."""
    if name not in (None, "", SIGNATURE):
        raise InvalidInput(f'Serving signature name: "{name:.60}" not found in signature def')


def _fields(data: bytes) -> _Body:
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if b"NaN" not in data and b"Infinity" not in data:
            raise InvalidInput(f"the body is not a JSON object of this protocol: {error}") from None
    # The tokens NaN and Infinity, which only the general parser reads.
    document = as_object(general(data), "request")
    name = document.get("signature_name")
    if name is not None and not isinstance(name, str):
        raise InvalidInput(f"signature_name: expected a string, got {kind_of(name)}")
    found = _Body(name)
    for key in ("instances", "inputs", "examples", "context"):
        if key in document:
            setattr(found, key, _dumped(document[key]))
    return found


def _given(value: Any) -> bool:
    return value is not _UNSET


def _dumped(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)
