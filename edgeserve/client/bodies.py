"""Bodies of the Open Inference Protocol v2 over HTTP: a question to bytes, bytes to an answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from edgeserve.client import problems
from edgeserve.client.model import Answer, Question, where_from
from edgeserve.client.tensors import json_values, tensor_from_bytes, tensor_from_json
from edgeserve.tensors import Array, dtype_name
from edgeserve.wire import binary


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Response(msgspec.Struct, frozen=True):
    model_name: str
    outputs: list[_Output]
    model_version: str = ""
    parameters: dict[str, Any] = {}


def encoded(question: Question, as_binary: bool) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON when tensors follow."""
    inputs: list[dict[str, Any]] = []
    blobs: list[Any] = []
    for name, array in question.inputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "datatype": dtype_name(array.dtype),
            "shape": list(array.shape),
        }
        if as_binary:
            blob = binary.to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = json_values(array)
        inputs.append(entry)
    document: dict[str, Any] = {"inputs": inputs}
    parameters: dict[str, Any] = dict(question.parameters)
    if question.outputs:
        document["outputs"] = [
            {"name": n, "parameters": {"binary_data": True}} if as_binary else {"name": n}
            for n in question.outputs
        ]
    elif as_binary:
        parameters["binary_data_output"] = True
    if parameters:
        document["parameters"] = parameters
    if question.id is not None:
        document["id"] = question.id
    head = msgspec.json.encode(document)
    return b"".join([head, *blobs]), len(head) if as_binary else None


def decoded(body: bytes, header_length: int | None) -> Answer:
    """The answer in a body; `header_length`: as `encoded` gives it. Raises InferenceFailed."""
    length = len(body) if header_length is None else header_length
    response: _Response = converted(body[:length], _Response)
    blobs = memoryview(body)[length:]
    outputs: dict[str, Array] = {}
    for output in response.outputs:
        kind = (output.name, output.datatype, tuple(output.shape))
        size = output.parameters.get("binary_data_size")
        if size is None:
            outputs[output.name] = tensor_from_json(*kind, output.data)
        elif isinstance(size, int) and size >= 0:
            outputs[output.name] = tensor_from_bytes(*kind, blobs[:size])
            blobs = blobs[size:]
        else:
            raise problems.unreadable(f"output '{output.name}': binary_data_size {size!r:.40}")
    return Answer(
        outputs, response.model_name, response.model_version, where_from(response.parameters)
    )


def converted(body: bytes, kind: Any) -> Any:
    """JSON as a Python type. Raises InferenceFailed."""
    # The standard library's parser also reads the bare NaN that some servers write.
    try:
        return msgspec.convert(json.loads(body), kind)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise problems.unreadable(str(error)) from None
