"""Predict, Classify and Regress for `protocols/grpc_inference.py`: messages to requests, outputs to messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from edgeserve.bundle import Classification
from edgeserve.errors import InvalidInput, ModelNotFound
from edgeserve.postprocess.classify import probabilities
from edgeserve.postprocess.rows import label_of
from edgeserve.preprocess import ImageReader, is_image
from edgeserve.serve.engine import Outcome
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.bodies.long import MOST_VALUES
from edgeserve.serve.protocols.bodies.values import ValueReader
from edgeserve.serve.protocols.codec import Decoded, Parsed
from edgeserve.serve.protocols.tfserving.codec import SIGNATURE, check_signature
from edgeserve.serve.protocols.tfserving.grpc import messages
from edgeserve.serve.protocols.tfserving.grpc.tensors import field, fitted, from_proto, to_proto
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import DTYPES, Array, Tensors
from edgeserve.wire import binary

if TYPE_CHECKING:
    from edgeserve.serve.protocols.tfserving.grpc.messages import Example, Input, ModelSpec

# Tags of length-delimited fields (field number << 3 | 2).
_FIRST: Final = b"\x0a"
_SECOND: Final = b"\x12"


class TfParsed(Parsed, frozen=True):
    """A message."""

    message: Any


class TfDecoded(Decoded, frozen=True):
    """Inputs by name as (datatype, array), or examples; and the outputs that are wanted."""

    inputs: dict[str, tuple[str, Array]]
    wanted: tuple[str, ...] = ()
    examples: tuple[dict[str, list[Any]], ...] = ()

    def binds_long(self, model: ServedModel) -> bool:
        """Whether images come."""
        if model.images is None:
            return False
        images = _encoded(self.inputs, model.images) or _encoded_examples(self.examples)
        return images is not None


class _Messages:
    """A MessageCodec: what the three methods share."""

    kind: type[Any]

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def parse(self, message: bytes) -> TfParsed:
        """Raises InvalidInput."""
        try:
            found = self.kind.FromString(message)
        except DecodeError:
            name = self.kind.DESCRIPTOR.full_name
            raise InvalidInput(f"the message is not a valid {name}") from None
        return TfParsed(found.model_spec.name, "", found)

    def written_bytes(self, request: InferRequest, outputs: Tensors) -> int:
        """Raises InvalidInput for more than is sent."""
        size = sum(binary.content_bytes(outputs[name]) for name in request.outputs)
        if size > self._limits.output_bytes:
            raise InvalidInput(
                f"the outputs are {size} bytes; the limit is {self._limits.output_bytes}"
            )
        return size


class PredictMessages(_Messages):
    """Tensors by name."""

    kind = messages.PredictRequest

    def decode(self, parsed: TfParsed) -> TfDecoded:
        """Raises InvalidInput; ModelNotFound for a version that there cannot be."""
        message = parsed.message
        version = version_of(message.model_spec)
        inputs = {
            name: from_proto(name, proto, self._limits.elements, self._limits.body_bytes)
            for name, proto in message.inputs.items()
        }
        return TfDecoded(parsed.model, "", version, inputs, tuple(message.output_filter))

    def bind(
        self, decoded: TfDecoded, model: ServedModel, remaining_s: float | None
    ) -> InferRequest:
        """Raises InvalidInput."""
        interface = model.interface
        encoded = _encoded(decoded.inputs, model.images)
        inputs: Tensors = {}
        if encoded is not None:
            reader = ValueReader(interface, self._limits, model.images)
            inputs = reader.read_images(encoded).inputs
        else:
            for name, (dtype, array) in decoded.inputs.items():
                inputs[name] = fitted(interface.input(name), dtype, array)
        for name in decoded.wanted:
            interface.output(name)
        if len(set(decoded.wanted)) < len(decoded.wanted):
            raise InvalidInput("output_filter names an output twice")
        wanted = decoded.wanted or tuple(s.name for s in interface.outputs)
        rows = interface.check(inputs)
        # One value that fills a shape becomes an array now that the shape is known to be right.
        inputs = {name: np.require(array, requirements="C") for name, array in inputs.items()}
        return InferRequest(inputs, rows, wanted, timeout_s=remaining_s)

    def encode(self, request: InferRequest, model: ServedModel, result: Outcome) -> bytes:
        """A serialized PredictResponse: its tensors are written by hand, since numbers are copied once then."""
        types = {spec.name: spec.dtype for spec in model.interface.outputs}
        parts = []
        for name in request.outputs:
            value = to_proto(result.outputs[name], types.get(name, ""))
            entry = field(_FIRST, name.encode()) + field(_SECOND, value)
            parts.append(field(_FIRST, entry))
        parts.append(field(_SECOND, spec_of(model).SerializeToString()))
        return b"".join(parts)


class _ExampleMessages(_Messages):
    """Rows of features: `tf.Example`s."""

    def decode(self, parsed: TfParsed) -> TfDecoded:
        """Raises InvalidInput; ModelNotFound for a version that there cannot be."""
        message = parsed.message
        version = version_of(message.model_spec)
        return TfDecoded(parsed.model, "", version, {}, (), _examples(message.input))

    def bind(
        self, decoded: TfDecoded, model: ServedModel, remaining_s: float | None
    ) -> InferRequest:
        """Raises InvalidInput."""
        interface = model.interface
        reader = ValueReader(interface, self._limits, model.images)
        encoded = _encoded_examples(decoded.examples) if model.images is not None else None
        if encoded is not None:
            read = reader.read_images(encoded)
            return InferRequest(read.inputs, read.rows, (scored(model),), timeout_s=remaining_s)
        rank = {s.name: len(s.shape) - (1 if interface.max_batch else 0) for s in interface.inputs}
        rows = []
        for example in decoded.examples:
            row = {}
            for name, values in example.items():
                spec = interface.input(name)
                row[name] = _row(values, spec.shape[-rank[name] :] if rank[name] else ())
            rows.append(row)
        read = reader.listed(rows)
        return InferRequest(read.inputs, read.rows, (scored(model),), timeout_s=remaining_s)


class ClassifyMessages(_ExampleMessages):
    """Labels and scores."""

    kind = messages.ClassificationRequest

    def encode(self, request: InferRequest, model: ServedModel, result: Outcome) -> bytes:
        """A serialized ClassificationResponse, with classes in the order of their numbers."""
        (name,) = request.outputs
        how = model.postprocessor.how
        labels = model.class_names.get(name, ())
        answer = messages.ClassificationResponse(model_spec=spec_of(model))
        for row in _rows(name, result.outputs[name], request.rows, model):
            scores = probabilities(row, how) if isinstance(how, Classification) else row
            found = answer.result.classifications.add()
            for index, score in enumerate(scores):
                found.classes.add(label=label_of(index, labels), score=float(score))
        data: bytes = answer.SerializeToString()
        return data


class RegressMessages(_ExampleMessages):
    """A number a row."""

    kind = messages.RegressionRequest

    def encode(self, request: InferRequest, model: ServedModel, result: Outcome) -> bytes:
        """A serialized RegressionResponse. Raises InvalidInput for several numbers a row."""
        (name,) = request.outputs
        answer = messages.RegressionResponse(model_spec=spec_of(model))
        for row in _rows(name, result.outputs[name], request.rows, model):
            if row.size != 1:
                raise InvalidInput(
                    f"Regress needs one number a row, output '{name}' has {row.size}: ask Predict"
                )
            answer.result.regressions.add(value=float(row[0]))
        data: bytes = answer.SerializeToString()
        return data


def version_of(spec: ModelSpec) -> str | None:
    """None and 0 are the newest. Raises InvalidInput for a label or signature that there is not."""
    if not spec.name:
        raise InvalidInput("ModelSpec has no name specified")
    check_signature(spec.signature_name)
    if spec.WhichOneof("version_choice") == "version_label":
        raise InvalidInput(f"Unrecognized servable version label: {spec.version_label:.60}")
    version = spec.version.value
    if version < 0:
        raise ModelNotFound(f"there is no version {version} of '{spec.name:.128}'")
    return str(version) if version else None


def spec_of(model: ServedModel) -> ModelSpec:
    """What answered."""
    found = messages.ModelSpec(name=model.name, signature_name=SIGNATURE)
    found.version.value = int(model.version)
    return found


def scored(model: ServedModel) -> str:
    """The output that classes or numbers are read from. Raises InvalidInput."""
    how = model.postprocessor.how
    if isinstance(how, Classification):
        return how.output
    numbers = [s.name for s in model.interface.outputs if DTYPES[s.dtype].kind in "iuf"]
    if len(numbers) != 1:
        raise InvalidInput(
            f"this needs a model with one output of numbers, this one has {len(numbers)}: ask Predict"
        )
    return numbers[0]


def _encoded(
    inputs: dict[str, tuple[str, Array]], images: ImageReader | None
) -> list[bytes] | None:
    """The images that come as strings for an input of images; None if no such come."""
    if images is None or set(inputs) != {images.spec.name}:
        return None
    dtype, array = inputs[images.spec.name]
    return array.ravel().tolist() if dtype == "BYTES" else None


def _examples(given: Input) -> tuple[dict[str, list[Any]], ...]:
    """Raises InvalidInput."""
    context: dict[str, list[Any]] = {}
    rows = given.example_list.examples
    if given.WhichOneof("kind") == "example_list_with_context":
        rows = given.example_list_with_context.examples
        context = _features(given.example_list_with_context.context)
    if not rows:
        raise InvalidInput("Input is empty")
    if len(rows) > MOST_VALUES or len(rows) + sum(map(_size, rows)) > MOST_VALUES:
        raise InvalidInput(
            f"the examples have more than {MOST_VALUES} values, which are read one by one: ask Predict"
        )
    return tuple(context | _features(example) for example in rows)


def _size(example: Example) -> int:
    """How many features and values it has."""
    return sum(
        1
        + len(feature.float_list.value)
        + len(feature.int64_list.value)
        + len(feature.bytes_list.value)
        for feature in example.features.feature.values()
    )


def _features(example: Example) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value) if kind else []
    return found


def _encoded_examples(examples: tuple[dict[str, list[Any]], ...]) -> list[bytes] | None:
    """The images of examples with one feature each, such as `image/encoded`, that is an image; None for others."""
    only = [
        value
        for example in examples
        for values in example.values()
        if len(example) == len(values) == 1
        for value in values
    ]
    if len(only) < len(examples) or not any(isinstance(v, bytes) and is_image(v) for v in only):
        return None
    return [value if isinstance(value, bytes) else b"" for value in only]


def _text(value: Any) -> Any:
    """A feature's value as JSON has it."""
    import base64

    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _row(values: list[Any], shape: tuple[int | str, ...]) -> Any:
    """A feature's values, which are flat, in the shape of a row."""
    values = [_text(value) for value in values]
    if not shape:
        if len(values) != 1:
            raise InvalidInput(f"expected one value for a feature, got {len(values)}")
        return values[0]
    flat: Array = np.empty(len(values), object)
    flat[:] = values
    fixed = [d if isinstance(d, int) else -1 for d in shape]
    try:
        return flat.reshape(fixed).tolist()
    except ValueError:
        raise InvalidInput(
            f"{len(values)} values do not fill a row of shape {list(shape)}"
        ) from None


def _rows(name: str, array: Array, rows: int, model: ServedModel) -> list[Array]:
    if not model.interface.max_batch:
        return [array.reshape(-1)]
    if not array.ndim or len(array) != rows:
        raise InvalidInput(f"output '{name}' does not have a row for each example")
    return list(array.reshape(rows, -1))
