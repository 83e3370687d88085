"""Infer requests and responses of the gRPC protocol: messages <-> V2Request and outputs, nothing else.

`decode` needs the message alone, so that it can run on any thread; `bind` checks the result against a
model. Responses are written as bytes: a large tensor is then copied once. Malformed input raises
InvalidInput with the field, what was expected and what came.

Sources: kserve/open-inference-protocol, specification/protocol/inference_grpc.md; Triton's
protocol/extension_{classification,parameters,shared_memory}.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.preprocess import ImageReader
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.bodies.values import ValueReader
from edgeserve.serve.protocols.codec import Decoded, Parsed
from edgeserve.serve.protocols.v2.classes import check_scores
from edgeserve.serve.protocols.v2.grpc.large import split
from edgeserve.serve.protocols.v2.parameters import (
    check_reserved,
    count,
    is_in_sequence,
    region_of,
    timeout_of,
)
from edgeserve.serve.protocols.v2.request import OutputRegion, RequestedOutput, V2Request
from edgeserve.tensors import DTYPES, Array, Interface, Tensors, TensorSpec, dtype_name
from edgeserve.wire import binary, messages

if TYPE_CHECKING:
    from edgeserve.wire.messages import (
        InferParameter,
        InferTensorContents,
        ModelInferRequest,
    )

FINAL: Final = "triton_final_response"
_EMPTY_FINAL: Final = "triton_enable_empty_final_response"
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_FIELD_DTYPES: Final = {
    "int_contents": np.dtype(np.int32),
    "uint_contents": np.dtype(np.uint32),
}
# Tags of length-delimited fields (field number << 3 | 2).
_ID: Final = b"\x1a"
_RAW_OUTPUT: Final = b"\x32"
_STREAM_RESPONSE: Final = b"\x12"
# Messages of this many bytes are worth looking into before protobuf does.
_LARGE: Final = 65_536


class Input(msgspec.Struct, frozen=True):
    """One tensor as the message has it; `values` is None where it lies in `region`."""

    spec: TensorSpec
    shape: tuple[int, ...]
    values: Array | None
    region: OutputRegion | None = None


class V2Parsed(Parsed, frozen=True):
    """A message, without the raw tensors, and those."""

    message: ModelInferRequest
    blobs: Sequence[memoryview]


class V2Decoded(Decoded, frozen=True):
    """`timeout_s` None: it names none. `in_sequence`: it names a sequence."""

    inputs: tuple[Input, ...]
    outputs: tuple[RequestedOutput, ...]
    timeout_s: float | None
    priority: int
    in_sequence: bool = False

    def binds_long(self, model: ServedModel) -> bool:
        """Whether images come."""
        return any(_is_encoded(given, model.images) for given in self.inputs)


def parse(data: bytes) -> V2Parsed:
    """A message, and its raw tensors as views. Raises InvalidInput for bytes that are not a ModelInferRequest."""
    parts = split(data) if len(data) >= _LARGE else None
    try:
        message: ModelInferRequest = messages.ModelInferRequest.FromString(
            data if parts is None else parts[0]
        )
    except DecodeError:
        raise InvalidInput("the message is not a valid inference.ModelInferRequest") from None
    blobs = parts[1] if parts else [memoryview(b) for b in message.raw_input_contents]
    return V2Parsed(message.model_name, message.id, message, blobs)


def decode(parsed: V2Parsed, max_elements: int) -> V2Decoded:
    """What a message and its raw tensors say, as arrays on their bytes; none may have more than
    `max_elements`. Raises InvalidInput."""
    message = parsed.message
    timeout: float | None = None
    priority, in_sequence = 0, False
    if message.parameters:
        parameters = read_parameters(message.parameters, "parameter")
        parameters.pop(_EMPTY_FINAL, None)  # each request has one response, which is its last
        check_reserved(parameters)
        timeout = timeout_of(parameters)
        priority = count(parameters, "priority", "a level")
        in_sequence = is_in_sequence(parameters)
    return V2Decoded(
        parsed.model,
        parsed.id,
        version_of(message.model_version),
        _inputs(message, parsed.blobs, max_elements),
        _outputs(message),
        timeout,
        priority,
        in_sequence,
    )


def version_of(text: str) -> str | None:
    """The version a message names; None for the newest. Raises InvalidInput."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidInput(f"version: expected a number, got {text!r:.40}")
    return str(int(text))


def bind(
    decoded: V2Decoded,
    interface: Interface,
    regions: Tensors,
    remaining_s: float | None,
    values: ValueReader | None = None,
) -> V2Request:
    """The request for a model with this interface; `regions` holds the inputs from shared memory, and
    `remaining_s` is what the client's deadline leaves. `values` reads images. Raises InvalidInput.
    """
    tensors: Tensors = {}
    for given in decoded.inputs:
        name = given.spec.name
        spec = interface.input(name)
        if values is not None and _is_encoded(given, values.images):
            encoded = regions[name] if given.values is None else given.values
            tensors |= values.read_images(encoded.ravel().tolist()).inputs
            continue
        if given.spec.dtype != spec.dtype:
            raise InvalidInput(f"input '{name}': expected {spec.dtype}, got {given.spec.dtype}")
        tensors[name] = regions[name] if given.values is None else given.values
    rows = interface.check(tensors)
    if decoded.outputs:
        wanted = decoded.outputs
        for one in wanted:
            spec = interface.output(one.name)
            if one.classes:
                check_scores(spec)
    else:
        wanted = tuple([RequestedOutput(s.name, True) for s in interface.outputs])
    timeout = decoded.timeout_s
    if remaining_s is not None:
        timeout = min(timeout, remaining_s) if timeout else remaining_s
    names = tuple([w.name for w in wanted])
    return V2Request(tensors, rows, names, decoded.id, timeout, decoded.priority, wanted)


def _is_encoded(given: Input, images: ImageReader | None) -> bool:
    """Whether strings come for an input of images: each is one."""
    return (
        images is not None and given.spec.dtype == "BYTES" and given.spec.name == images.spec.name
    )


def encode(
    head: bytes,
    request: V2Request,
    outputs: Tensors,
    interface: Interface,
    best: Callable[[str, Array, int], Array],
) -> bytes:
    """A serialized ModelInferResponse that begins with `head`; `best` makes classes of scores.
    Outputs that went to shared memory are described only."""
    parts: list[bytes | memoryview] = [head]
    if request.id:
        _append(parts, _ID, request.id.encode())
    blobs: list[bytes | memoryview] = []
    for wanted in request.wanted:
        array = outputs[wanted.name]
        datatype = interface.output(wanted.name).dtype
        if wanted.classes:
            array = best(wanted.name, array, wanted.classes)
            datatype = "BYTES"
        elif array.dtype != DTYPES[datatype]:
            datatype = dtype_name(array.dtype)
        if wanted.region is None:
            parts.append(_description(wanted.name, datatype, array.shape))
            _append(blobs, _RAW_OUTPUT, binary.to_bytes(array))
        else:
            parts.append(_in_region(wanted.name, datatype, array, wanted.region))
            _append(blobs, _RAW_OUTPUT, b"")
    return b"".join(parts + blobs)


def response_head(model: str, version: str, candidate: Candidate, *, final: bool) -> bytes:
    """The part of a response that is the same for all requests that a candidate answers; `final` marks
    the last one of a streamed request."""
    return _head(model, version, candidate.device, candidate.runtime, candidate.variant, final)


@lru_cache(maxsize=256)
def _head(model: str, version: str, device: str, runtime: str, variant: str, final: bool) -> bytes:
    head = messages.ModelInferResponse(model_name=model, model_version=version)
    head.parameters["edgeserve_device"].string_param = device
    head.parameters["edgeserve_runtime"].string_param = runtime
    head.parameters["edgeserve_variant"].string_param = variant
    if final:
        head.parameters[FINAL].bool_param = True
    return bytes(head.SerializeToString())


def in_stream(response: bytes) -> bytes:
    """A serialized response as the ModelStreamInferResponse that holds it."""
    parts: list[bytes | memoryview] = []
    _append(parts, _STREAM_RESPONSE, response)
    return b"".join(parts)


def stream_error(text: str, request_id: str) -> bytes:
    """A serialized ModelStreamInferResponse about a request that failed."""
    response = messages.ModelInferResponse(id=request_id)
    response.parameters[FINAL].bool_param = True
    answer = messages.ModelStreamInferResponse(error_message=text, infer_response=response)
    return bytes(answer.SerializeToString())


def read_parameters(given: Mapping[str, InferParameter], what: str) -> dict[str, Any]:
    """Parameters as Python values. Raises InvalidInput for one without a value."""
    values: dict[str, Any] = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(f"{what} '{name:.60}' has no value")
        values[name] = getattr(parameter, choice)
    return values


def _inputs(
    message: ModelInferRequest, blobs: Sequence[memoryview], max_elements: int
) -> tuple[Input, ...]:
    raw = len(blobs) > 0
    used = 0
    inputs: dict[str, Input] = {}
    for given in message.inputs:
        name = given.name
        if name in inputs:
            raise InvalidInput(f"input '{name}' is given twice")
        dtype = given.datatype
        if dtype not in DTYPES:
            raise InvalidInput(f"input '{name}': unknown datatype '{dtype:.40}'")
        shape = tuple(given.shape)
        if shape and min(shape) < 0:
            raise InvalidInput(f"input '{name}' shape: expected sizes, got {list(shape)}")
        if math.prod(shape) > max_elements:
            raise InvalidInput(
                f"input '{name}': expected at most {max_elements} elements, got {list(shape)}"
            )
        spec = TensorSpec(name, dtype, shape)
        region = (
            region_of(read_parameters(given.parameters, "parameter"), f"input '{name}'")
            if given.parameters
            else None
        )
        if raw and given.HasField("contents"):
            raise InvalidInput(
                f"input '{name}': contents must not be given together with raw_input_contents"
            )
        if region is not None:
            if given.HasField("contents"):
                raise InvalidInput(f"input '{name}' has both contents and a shared memory region")
            inputs[name] = Input(spec, shape, None, region)
        elif raw or dtype not in _CONTENTS:
            if used >= len(blobs):
                raise InvalidInput(f"input '{name}': unable to find its data in raw_input_contents")
            inputs[name] = Input(spec, shape, binary.from_bytes(spec, shape, blobs[used]))
            used += 1
        else:
            inputs[name] = Input(spec, shape, _typed(spec, shape, given.contents))
    if used != len(blobs):
        raise InvalidInput(f"raw_input_contents: expected {used} tensors, got {len(blobs)}")
    return tuple(inputs.values())


def _typed(spec: TensorSpec, shape: tuple[int, ...], contents: InferTensorContents) -> Array:
    wanted = _CONTENTS[spec.dtype]
    others = [field.name for field, _ in contents.ListFields() if field.name != wanted]
    if others:
        raise InvalidInput(
            f"input '{spec.name}': expected {wanted} for {spec.dtype}, got {others[0]}"
        )
    values = getattr(contents, wanted)
    expected = math.prod(shape)
    if len(values) != expected:
        raise InvalidInput(
            f"input '{spec.name}': expected {expected} elements for shape {list(shape)}, "
            f"got {len(values)}"
        )
    if spec.dtype == "BYTES":
        texts = np.empty(expected, dtype=object)
        texts[:] = list(values)
        return texts.reshape(shape)
    array = np.array(values, dtype=_FIELD_DTYPES.get(wanted, spec.numpy_dtype))
    typed = array.astype(spec.numpy_dtype, copy=False)
    if typed.dtype != array.dtype and not np.array_equal(typed, array):
        raise InvalidInput(f"input '{spec.name}': a value is outside {spec.dtype}")
    return typed.reshape(shape)


def _outputs(message: ModelInferRequest) -> tuple[RequestedOutput, ...]:
    if not message.outputs:
        return ()
    wanted = {output.name: _wanted(output) for output in message.outputs}
    if len(wanted) != len(message.outputs):
        raise InvalidInput("an output is asked for twice")
    return tuple(wanted.values())


def _wanted(output: ModelInferRequest.InferRequestedOutputTensor) -> RequestedOutput:
    if not output.parameters:
        return RequestedOutput(output.name, True)
    parameters = read_parameters(output.parameters, f"output '{output.name:.60}' parameter")
    classes = count(parameters, "classification", "a count")
    region = region_of(parameters, f"output '{output.name:.60}'")
    if classes and region is not None:
        raise InvalidInput(f"output '{output.name}': classes do not go to shared memory")
    return RequestedOutput(output.name, True, classes, region)


def _in_region(name: str, datatype: str, array: Array, region: OutputRegion) -> bytes:
    response = messages.ModelInferResponse()
    output = response.outputs.add(name=name, datatype=datatype, shape=list(array.shape))
    output.parameters["shared_memory_region"].string_param = region.region
    output.parameters["shared_memory_offset"].int64_param = region.offset
    output.parameters["shared_memory_byte_size"].int64_param = len(binary.to_bytes(array))
    return bytes(response.SerializeToString())


@lru_cache(maxsize=1024)
def _description(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    response = messages.ModelInferResponse()
    response.outputs.add(name=name, datatype=datatype, shape=list(shape))
    return bytes(response.SerializeToString())


def _append(parts: list[bytes | memoryview], tag: bytes, data: bytes | memoryview) -> None:
    parts.append(tag + _varint(len(data)))
    parts.append(data)


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first (protobuf's encoding)."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
