"""The Open Inference Protocol v2 over HTTP: bytes <-> requests, with the binary tensor data extension.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's
protocol/extension_binary_data.md and extension_classification.md. Malformed input raises InvalidInput
with the field, what was expected and what came.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols import binary
from edgeserve.tensors import DTYPES, Array, Interface, Tensors, TensorSpec, dtype_name

MAX_JSON_DEPTH: Final = 100
_NO_JSON_FORM: Final = {"FP16", "BF16"}
# KServe's client repeats the model's name; the path decides.
_REQUEST_FIELDS: Final = {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}
_OPENING: Final = frozenset(b"[{")
_CLOSING: Final = frozenset(b"]}")


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output the client wants: as binary or JSON, or as its `classes` best classes."""

    name: str
    binary: bool
    classes: int = 0


class InferRequest(msgspec.Struct, frozen=True):
    """A decoded request. `inputs` may be views on the body. `timeout_s` None: the server's default."""

    inputs: Tensors
    rows: int
    outputs: tuple[RequestedOutput, ...]
    id: str | None = None
    timeout_s: float | None = None


class Encoded(msgspec.Struct, frozen=True):
    """A response body in parts; `header_length` is set when tensors follow the JSON."""

    parts: list[Any]  # bytes and memoryviews
    header_length: int | None = None


def decode_request(
    body: memoryview, header_length: int | None, interface: Interface
) -> InferRequest:
    """Decode one infer request; `header_length` is Inference-Header-Content-Length.

    Raises InvalidInput.
    """
    if header_length == 0:
        return _raw_request(body, interface)
    if header_length is not None and not 0 < header_length <= len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length: expected 0 to {len(body)}, got {header_length}"
        )
    text = body if header_length is None else body[:header_length]
    document = _object(_parse_json(text), "request")
    unknown = set(document) - _REQUEST_FIELDS
    if unknown:
        raise InvalidInput(f"unknown field '{min(unknown)}': expected {sorted(_REQUEST_FIELDS)}")
    parameters = _object(document.get("parameters", {}), "parameters")
    for name in parameters:
        if name.startswith("triton_"):
            raise InvalidInput(f"parameter '{name}' is reserved")
    inputs = _inputs(document, body[len(text) :], interface)
    rows = interface.check(inputs)
    return InferRequest(
        inputs,
        rows,
        _outputs(document, parameters, interface),
        _optional_text(document.get("id"), "id"),
        _timeout(parameters),
    )


def encode_response(
    request: InferRequest,
    outputs: Tensors,
    model: str,
    version: str,
    parameters: dict[str, str],
    labels: list[str] | None,
) -> Encoded:
    """Encode the requested outputs; those wanted as binary follow the JSON in order."""
    described: list[dict[str, Any]] = []
    blobs: list[Any] = []
    for wanted in request.outputs:
        array = outputs[wanted.name]
        entry: dict[str, Any] = {"name": wanted.name}
        if wanted.classes:
            array = classify(array, wanted.classes, labels)
        entry["datatype"] = dtype_name(array.dtype)
        entry["shape"] = list(array.shape)
        if wanted.binary:
            blob = binary.to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = _json_data(wanted.name, array)
        described.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["parameters"] = parameters
    document["outputs"] = described
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Encoded([head, *blobs], len(head) if blobs else None)


def classify(scores: Array, classes: int, labels: list[str] | None) -> Array:
    """The best classes of each row as "score:index[:label]", shape [rows, classes]."""
    rows = scores.reshape(scores.shape[0], -1) if scores.ndim > 1 else scores.reshape(1, -1)
    count = min(classes, rows.shape[1])
    best = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    texts = [
        [f"{row[i]:f}:{i}" + (f":{labels[i]}" if labels and i < len(labels) else "") for i in picks]
        for row, picks in zip(rows, best, strict=True)
    ]
    return np.array([[t.encode() for t in row] for row in texts], dtype=object)


def metadata(name: str, versions: list[str], platform: str, interface: Interface) -> dict[str, Any]:
    """The model metadata response."""
    return {
        "name": name,
        "versions": versions,
        "platform": platform,
        "inputs": [_described(s) for s in interface.inputs],
        "outputs": [_described(s) for s in interface.outputs],
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": spec.wire_shape}


def _parse_json(text: memoryview) -> Any:
    _check_depth(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # Triton's clients send bare NaN and Infinity, which JSON does not have.
        if b"NaN" not in bytes(text) and b"Infinity" not in bytes(text):
            raise InvalidInput(f"the body is not JSON: {error}") from None
    try:
        return json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None


def _check_depth(text: memoryview) -> None:
    """Bound nesting before parsing. Brackets in strings count too: names hold no hundred of them."""
    data = bytes(text) if len(text) < 4096 else bytes(text[:4096])
    if data.count(b"[") + data.count(b"{") < MAX_JSON_DEPTH and len(text) < 4096:
        return
    depth = 0
    for char in bytes(text).translate(None, _NOT_BRACKETS):
        if char in _OPENING:
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise InvalidInput(f"the JSON is nested deeper than {MAX_JSON_DEPTH} levels")
        else:
            depth -= 1


_NOT_BRACKETS: Final = bytes(c for c in range(256) if c not in _OPENING | _CLOSING)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what}: expected an object, got {_kind(value)}")
    return value


def _optional_text(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidInput(f"{what}: expected a string, got {_kind(value)}")
    return value


def _timeout(parameters: dict[str, Any]) -> float | None:
    """Triton's `timeout` parameter is in microseconds; 0 means none."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"parameter 'timeout': expected microseconds, got {value!r}")
    return value / 1e6


def _inputs(document: dict[str, Any], blobs: memoryview, interface: Interface) -> Tensors:
    entries = document.get("inputs")
    if not isinstance(entries, list):
        raise InvalidInput(f"inputs: expected a list, got {_kind(entries)}")
    tensors: Tensors = {}
    offset = 0
    for index, entry in enumerate(entries):
        entry = _object(entry, f"inputs[{index}]")
        name = entry.get("name")
        if not isinstance(name, str):
            raise InvalidInput(f"inputs[{index}].name: expected a string, got {_kind(name)}")
        if name in tensors:
            raise InvalidInput(f"input '{name}' is given twice")
        spec = interface.input(name)
        shape = _shape(name, entry.get("shape"))
        datatype = entry.get("datatype")
        if datatype != spec.dtype:
            raise InvalidInput(f"input '{name}': expected {spec.dtype}, got {datatype}")
        if not spec.fits(shape):
            want = ",".join(str(d) for d in spec.shape)
            have = ",".join(str(d) for d in shape)
            raise InvalidInput(f"input '{name}': expected shape [{want}], got [{have}]")
        size = _object(entry.get("parameters", {}), f"input '{name}' parameters").get(
            "binary_data_size"
        )
        if size is None:
            tensors[name] = _from_json(spec, shape, entry)
            continue
        if "data" in entry:
            raise InvalidInput(f"input '{name}' has both data and binary_data_size")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidInput(f"input '{name}' binary_data_size: expected a size, got {size!r}")
        if offset + size > len(blobs):
            raise InvalidInput(
                f"input '{name}': expected {size} bytes of binary data, got {len(blobs) - offset}"
            )
        tensors[name] = binary.from_bytes(spec, shape, blobs[offset : offset + size])
        offset += size
    if offset != len(blobs):
        raise InvalidInput(f"{len(blobs) - offset} bytes of binary data belong to no input")
    return tensors


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(
        isinstance(d, int) and not isinstance(d, bool) and d >= 0 for d in value
    ):
        raise InvalidInput(f"input '{name}' shape: expected a list of sizes, got {value!r:.60}")
    return tuple(value)


def _from_json(spec: TensorSpec, shape: tuple[int, ...], entry: dict[str, Any]) -> Array:
    if "data" not in entry:
        raise InvalidInput(f"input '{spec.name}' has neither data nor binary_data_size")
    if spec.dtype in _NO_JSON_FORM:
        raise InvalidInput(f"input '{spec.name}': {spec.dtype} has no JSON form, send binary data")
    data = entry["data"]
    if not isinstance(data, list):
        raise InvalidInput(f"input '{spec.name}' data: expected a list, got {_kind(data)}")
    expected = math.prod(shape)
    if spec.dtype == "BYTES":
        return _texts(spec, shape, data)
    try:
        array = np.asarray(data)
    except ValueError:
        raise InvalidInput(f"input '{spec.name}' data: its lists differ in length") from None
    if array.size != expected:
        raise InvalidInput(
            f"input '{spec.name}' data: expected {expected} elements for shape {list(shape)}, "
            f"got {array.size}"
        )
    if array.size == 0:
        return np.zeros(shape, spec.numpy_dtype)
    if not _castable(array, spec):
        raise InvalidInput(
            f"input '{spec.name}' data: expected {spec.dtype} values, got {array.dtype}"
        )
    with np.errstate(over="ignore"):
        typed = array.astype(spec.numpy_dtype)
    if (
        array.dtype.kind in "iuf"
        and spec.numpy_dtype.kind in "iu"
        and not np.array_equal(typed, array)
    ):
        raise InvalidInput(f"input '{spec.name}' data: a value is outside {spec.dtype}")
    return typed.reshape(shape)


def _castable(array: Array, spec: TensorSpec) -> bool:
    kind, wanted = array.dtype.kind, spec.numpy_dtype.kind
    if wanted == "f":
        return kind in "iuf"
    if wanted in "iu":
        return kind in "iu"
    return kind == wanted


def _texts(spec: TensorSpec, shape: tuple[int, ...], data: list[Any]) -> Array:
    flat: list[Any] = []
    stack = [iter(data)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            flat.append(item)
        else:
            stack.pop()
    if not all(isinstance(t, str) for t in flat):
        raise InvalidInput(f"input '{spec.name}' data: expected strings")
    if len(flat) != math.prod(shape):
        raise InvalidInput(
            f"input '{spec.name}' data: expected {math.prod(shape)} strings, got {len(flat)}"
        )
    array = np.empty(len(flat), dtype=object)
    array[:] = [t.encode() for t in flat]
    return array.reshape(shape)


def _outputs(
    document: dict[str, Any], parameters: dict[str, Any], interface: Interface
) -> tuple[RequestedOutput, ...]:
    default = _flag(parameters.get("binary_data_output", False), "binary_data_output")
    entries = document.get("outputs")
    if entries is not None and not isinstance(entries, list):
        raise InvalidInput(f"outputs: expected a list, got {_kind(entries)}")
    if not entries:
        return tuple(RequestedOutput(s.name, default) for s in interface.outputs)
    wanted: dict[str, RequestedOutput] = {}
    for index, entry in enumerate(entries):
        entry = _object(entry, f"outputs[{index}]")
        name = entry.get("name")
        if not isinstance(name, str):
            raise InvalidInput(f"outputs[{index}].name: expected a string, got {_kind(name)}")
        spec = interface.output(name)
        if name in wanted:
            raise InvalidInput(f"output '{name}' is asked for twice")
        own = _object(entry.get("parameters", {}), f"output '{name}' parameters")
        classes = own.get("classification", 0)
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
            raise InvalidInput(f"output '{name}' classification: expected a count, got {classes!r}")
        if classes and DTYPES[spec.dtype].kind not in "iuf":
            raise InvalidInput(f"output '{name}' holds no scores to classify by")
        as_binary = _flag(own.get("binary_data", default), "binary_data")
        wanted[name] = RequestedOutput(name, as_binary, classes)
    return tuple(wanted.values())


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter '{what}': expected true or false, got {value!r}")
    return value


def _raw_request(body: memoryview, interface: Interface) -> InferRequest:
    """A body that is one tensor and nothing else: one input, at most one variable dimension, batch 1."""
    if len(interface.inputs) != 1:
        raise InvalidInput(f"a raw request needs one input, the model has {len(interface.inputs)}")
    (spec,) = interface.inputs
    shape = list(spec.shape)
    if interface.max_batch:
        shape[0] = 1
    loose = [i for i, d in enumerate(shape) if isinstance(d, str)]
    if spec.dtype == "BYTES":
        for i in loose:
            shape[i] = 1
    elif len(loose) == 1:
        row = math.prod(d for d in shape if isinstance(d, int)) * spec.numpy_dtype.itemsize
        shape[loose[0]] = len(body) // row if row else 0
    elif loose:
        raise InvalidInput(f"input '{spec.name}' has several variable dimensions: say its shape")
    fixed = tuple(int(d) for d in shape)
    if spec.dtype == "BYTES":
        array = np.empty(1, dtype=object)
        array[0] = bytes(body)
        inputs = {spec.name: array.reshape(fixed)}
    else:
        inputs = {spec.name: binary.from_bytes(spec, fixed, body)}
    rows = interface.check(inputs)
    outputs = tuple(RequestedOutput(s.name, True) for s in interface.outputs)
    return InferRequest(inputs, rows, outputs)


def _json_data(name: str, array: Array) -> Any:
    if array.dtype == object:
        try:
            return [v.decode() if isinstance(v, bytes) else str(v) for v in array.reshape(-1)]
        except UnicodeDecodeError:
            raise InvalidInput(f"output '{name}' is not text: ask for binary data") from None
    if array.dtype == np.float16:
        raise InvalidInput(f"output '{name}': FP16 has no JSON form, ask for binary data")
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise InvalidInput(
            f"output '{name}' holds NaN or infinity, which JSON cannot express: ask for binary data"
        )
    return flat


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "nothing"}
    return names.get(type(value), f"{value!r:.40}")
