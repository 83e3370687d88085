"""Answers of the Open Inference Protocol v2 over HTTP: outputs -> JSON, binary, classes, shared memory.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's
protocol/extension_binary_data.md, extension_classification.md, extension_shared_memory.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.serve.http.response import JSON, Response
from edgeserve.serve.protocols.codec import answer_form
from edgeserve.serve.protocols.v2.classes import Classes
from edgeserve.serve.protocols.v2.parameters import write_region
from edgeserve.serve.protocols.v2.request import OutputRegion, RequestedOutput, V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from edgeserve.tensors import Array, Interface, Tensors, dtype_name
from edgeserve.wire import binary
from edgeserve.wire.written import json_data

BINARY: Final = "application/octet-stream"
_HEADER_LENGTH: Final = b"\r\nInference-Header-Content-Length: %d"
_KEPT_ENTRIES: Final = 256
# Bytes of outputs that are encoded at once, whatever their kind.
_SMALL: Final = 1_024
# Bytes of an array that take some hundred microseconds to write as JSON; what a string takes besides its own.
_PIECE: Final = 65_536
_TEXT: Final = 32
# Python's lock goes to another thread only while its holder does not want it back.
_PAUSE_S: Final = 1e-6


class _About:
    """What every answer of a candidate says: in its JSON before the outputs, and in its head."""

    __slots__ = ("binary", "candidate", "json", "start")

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.start = b',"parameters":%s,"outputs":[' % orjson.dumps(
            {
                "edgeserve_device": candidate.device,
                "edgeserve_runtime": candidate.runtime,
                "edgeserve_variant": candidate.variant,
            }
        )
        self.json = answer_form(candidate, JSON)
        self.binary = answer_form(candidate, BINARY)


class Encoder:
    """Encodes the answers of one model, on any thread. What repeats in them is made once."""

    def __init__(
        self,
        name: str,
        version: str,
        interface: Interface,
        classes: Classes,
        limits: Limits,
        shm: SharedMemory,
    ) -> None:
        self._start = b'{"model_name":%s,"model_version":%s' % (
            orjson.dumps(name),
            orjson.dumps(version),
        )
        self._texts = any(s.dtype == "BYTES" for s in interface.outputs)
        self._content = binary.content_bytes if self._texts else attrgetter("nbytes")
        self._types = {s.name: (s.numpy_dtype, s.dtype) for s in interface.outputs}
        self._classes = classes
        self._limits = limits
        self._shm = shm
        self._about: _About | None = None
        self._entries: dict[tuple[str, tuple[int, ...], str], bytes] = {}

    def written_bytes(self, request: V2Request, outputs: Tensors) -> int:
        """How many bytes of the wanted outputs, at most, take work to encode: JSON, classes and strings. The rest
        is sent as it is. Raises InvalidInput for more than the server sends."""
        size = 0
        for wanted in request.wanted:
            size += self._content(outputs[wanted.name])
        if size > self._limits.output_bytes:
            raise InvalidInput(
                f"the outputs are {size} bytes; the limit is {self._limits.output_bytes}"
            )
        if size <= _SMALL:
            return size
        return sum(
            self._content(outputs[w.name])
            for w in request.wanted
            if self._texts or not (w.binary or w.region) or w.classes
        )

    def encode(self, request: V2Request, outputs: Tensors, candidate: Candidate) -> Response:
        """The answer, after `written_bytes` accepted its size. Raises InvalidInput for what JSON cannot express, and
        for more text than the server sends."""
        about = self._about
        if about is None or about.candidate is not candidate:
            about = self._about = _About(candidate)
        # An empty id counts as none, as with Triton.
        identity = b"" if not request.id else b',"id":' + msgspec.json.encode(request.id)
        text: list[Any] = [self._start, identity, about.start]
        blobs: list[Any] = []
        size = 0  # of the pieces
        for wanted in request.wanted:
            array = outputs[wanted.name]
            if wanted.classes:
                array = self._classes.best(wanted.name, array, wanted.classes)
            if len(text) > 3:
                text.append(b",")
            if wanted.binary or wanted.region is not None or self._content(array) <= _PIECE:
                text.append(self._entry(wanted, array, blobs, request.allow_nan))
                continue
            for piece in self._in_pieces(wanted.name, array, request.allow_nan):
                size += len(piece)
                if size > self._limits.output_bytes:
                    raise self._too_large()
                text.append(piece)
        text.append(b"]}")
        if size:
            size = sum(map(len, text))
        else:
            head = b"".join(text)
            text, size = [head], len(head)
        if size > self._limits.output_bytes:
            raise self._too_large()
        if not blobs:
            return Response(about.json, text)
        return Response(about.binary, [*text, *blobs], _HEADER_LENGTH % size)

    def _too_large(self) -> InvalidInput:
        return InvalidInput(f"the answer is larger than {self._limits.output_bytes} bytes")

    def _entry(
        self, wanted: RequestedOutput, array: Array, blobs: list[Any], allow_nan: bool
    ) -> bytes:
        name = wanted.name
        start, datatype = self._described(name, array)
        if wanted.region is not None:
            return start + self._to_region(name, wanted.region, array)
        if wanted.binary:
            blob = binary.to_bytes(array)
            blobs.append(blob)
            return b'%s,"parameters":{"binary_data_size":%d}}' % (start, len(blob))
        return b'%s,"data":%s}' % (start, json_data(name, array, datatype, allow_nan=allow_nan))

    def _in_pieces(self, name: str, array: Array, allow_nan: bool) -> Iterator[bytes]:
        """As `_entry` of an output that is wanted as JSON, but no call takes long, and other threads get
        Python's lock between them."""
        start, datatype = self._described(name, array)
        yield start + b',"data":['
        flat = np.ascontiguousarray(array).reshape(-1)
        comma = b""
        for part in _texts(flat) if flat.dtype == object else _numbers(flat):
            piece = json_data(name, part, datatype, allow_nan=allow_nan)
            yield b"".join((comma, memoryview(piece)[1:-1]))
            comma = b","
            time.sleep(_PAUSE_S)
        yield b"]}"

    def _described(self, name: str, array: Array) -> tuple[bytes, str]:
        """How the entry of an output begins, and its type."""
        declared, datatype = self._types[name]
        if array.dtype is not declared and array.dtype != declared:
            datatype = dtype_name(array.dtype)
        return self._entry_start(name, array.shape, datatype), datatype

    def _entry_start(self, name: str, shape: tuple[int, ...], datatype: str) -> bytes:
        key = (name, shape, datatype)
        start = self._entries.get(key)
        if start is None:
            if len(self._entries) >= _KEPT_ENTRIES:
                self._entries.clear()
            document = {"name": name, "datatype": datatype, "shape": shape}
            start = self._entries[key] = orjson.dumps(document)[:-1]
        return start

    def _to_region(self, name: str, region: OutputRegion, array: Array) -> bytes:
        size = write_region(self._shm, region, name, array)
        return b',"parameters":%s}' % orjson.dumps(
            {
                "shared_memory_region": region.region,
                "shared_memory_offset": region.offset,
                "shared_memory_byte_size": size,
                # Triton's C++ client, and so perf_analyzer, wants that wherever there are parameters.
                "binary_data_size": 0,
            }
        )


def _numbers(flat: Array) -> Iterator[Array]:
    step = _PIECE // flat.itemsize
    for first in range(0, flat.size, step):
        yield flat[first : first + step]


def _texts(flat: Array) -> Iterator[Array]:
    """Runs of strings that take about as long to write; one that is long by itself is not cut."""
    first = size = 0
    for at, text in enumerate(flat):
        size += _TEXT + (len(text) if isinstance(text, bytes | str) else 0)
        if size >= _PIECE:
            yield flat[first : at + 1]
            first, size = at + 1, 0
    if first < len(flat):
        yield flat[first:]
