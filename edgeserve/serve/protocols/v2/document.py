"""The JSON of an infer request, in typed structs; and what is wrong with JSON that does not fit them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from edgeserve.errors import InvalidInput
from edgeserve.tensors import DTYPES
from edgeserve.wire.text import as_object, check_depth, kind_of, parse_json

# For /openapi.json alone: nothing of it is checked while a request is decoded.
Datatype = Annotated[str, Meta(extra_json_schema={"enum": list(DTYPES)})]
Size = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
_SCALAR: Final = {"type": ["string", "number", "boolean"]}
Parameters = Annotated[dict[str, Any], Meta(extra_json_schema={"additionalProperties": _SCALAR})]
_DATA: Final = {
    "type": "array",
    "description": "Nested or flat, row-major; absent for binary tensors",
}
# JSON that is not parsed yet, or UNSET; what `general` made. A union would parse it: msgspec leaves JSON as it is
# only if nothing else is allowed.
if TYPE_CHECKING:
    Data = Any
else:
    Data = Annotated[msgspec.Raw, Meta(extra_json_schema=_DATA)]


class OutputEntry(msgspec.Struct):
    """An output that is asked for, and in which form."""

    name: str
    parameters: Parameters = {}


class InputBody(msgspec.Struct):
    """One input tensor."""

    name: str
    shape: list[Size]
    datatype: Datatype
    data: Data = msgspec.UNSET
    parameters: Parameters = {}


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """Inputs, and which outputs are wanted: all if none is named. The path names the model."""

    inputs: list[InputBody]
    outputs: list[OutputEntry] | None = []
    id: str | None = None
    parameters: Parameters = {}
    # KServe's client repeats the model's name.
    model_name: str | None = None
    model_version: str | None = None


_DECODER: Final = msgspec.json.Decoder(InferBody)
_FIELDS: Final = {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}
# Of more than that nothing but typed structs is made: general objects may take fifty times the memory of
# their text, and are made in one call, during which no other thread has Python's lock.
GENERAL_BYTES: Final = 1 << 20


def parse(text: bytes | memoryview, depth: int) -> InferBody:
    """The document of an infer request. Raises InvalidInput naming the field that is wrong."""
    data = bytes(text)
    check_depth(data, depth)
    try:
        return _DECODER.decode(data)
    # ValueError: of text that is not UTF-8.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if len(data) > GENERAL_BYTES:
            raise InvalidInput(
                f"the body is not an infer request: {error} (NaN and Infinity are read in up to "
                f"{GENERAL_BYTES} bytes of JSON: send binary data)"
            ) from None
        return general(data)


def general(data: bytes) -> InferBody:
    document = as_object(parse_json(data), "request")
    unknown = set(document) - _FIELDS
    if unknown:
        raise InvalidInput(f"unknown field '{min(unknown):.60}': expected {sorted(_FIELDS)}")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidInput(f"id: expected a string, got {kind_of(identity)}")
    parameters = as_object(document.get("parameters", {}), "parameters")
    inputs = document.get("inputs")
    if not isinstance(inputs, list):
        raise InvalidInput(f"inputs: expected a list, got {kind_of(inputs)}")
    outputs = document.get("outputs")
    if outputs is not None and not isinstance(outputs, list):
        raise InvalidInput(f"outputs: expected a list, got {kind_of(outputs)}")
    return InferBody(
        [_input(entry, i) for i, entry in enumerate(inputs)],
        [_output(entry, i) for i, entry in enumerate(outputs or [])],
        identity,
        parameters,
    )


def _input(value: Any, index: int) -> InputBody:
    entry = as_object(value, f"inputs[{index}]")
    name = _name(entry, f"inputs[{index}]")
    shape, datatype = entry.get("shape"), entry.get("datatype")
    if not isinstance(shape, list) or not all(
        isinstance(d, int) and not isinstance(d, bool) for d in shape
    ):
        raise InvalidInput(f"input '{name}' shape: expected a list of sizes, got {shape!r:.60}")
    if not isinstance(datatype, str):
        raise InvalidInput(f"input '{name}' datatype: expected a string, got {kind_of(datatype)}")
    parameters = as_object(entry.get("parameters", {}), f"input '{name}' parameters")
    return InputBody(name, shape, datatype, entry.get("data", msgspec.UNSET), parameters)


def _output(value: Any, index: int) -> OutputEntry:
    entry = as_object(value, f"outputs[{index}]")
    name = _name(entry, f"outputs[{index}]")
    return OutputEntry(name, as_object(entry.get("parameters", {}), f"output '{name}' parameters"))


def _name(entry: dict[str, Any], what: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise InvalidInput(f"{what}.name: expected a string, got {kind_of(name)}")
    return name
