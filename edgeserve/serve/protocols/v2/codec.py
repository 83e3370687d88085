"""The Open Inference Protocol v2 over HTTP: bytes <-> requests, with the binary tensor data extension.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's
protocol/extension_binary_data.md, extension_shared_memory.md, extension_parameters.md. Malformed input
raises InvalidInput with the field, what was expected and what came.

A request is decoded into typed structs, which costs half of what general objects cost; one that does
not fit them is read again as general objects, to say what is wrong or to allow NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.preprocess import ImageReader
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.http.response import Response
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.bodies.codec import IMAGE_MOST, IMAGE_WORK
from edgeserve.serve.protocols.bodies.values import ValueReader, decoded_b64
from edgeserve.serve.protocols.v2 import answers
from edgeserve.serve.protocols.v2.classes import Classes, check_scores
from edgeserve.serve.protocols.v2.document import InferBody, InputBody, parse
from edgeserve.serve.protocols.v2.parameters import (
    SHM,
    check_reserved,
    count,
    flag,
    is_in_sequence,
    no_sequences,
    read_region,
    region_of,
    timeout_of,
)
from edgeserve.serve.protocols.v2.repeated import Repeated
from edgeserve.serve.protocols.v2.request import RequestedOutput, V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from edgeserve.tensors import Interface, Tensors, TensorSpec
from edgeserve.wire import binary
from edgeserve.wire.json import JsonPort

_SMALL_IMAGE: Final = 4_096  # bytes of one that is decoded as fast as a thread is reached
_HEADER_LENGTH: Final = b"inference-header-content-length"


class V2:
    """What protocols/inference.py serves. Its terms are Inference-Header-Content-Length, None for plain JSON."""

    def __init__(self, limits: Limits, shm: SharedMemory) -> None:
        self._limits = limits
        self._shm = shm

    def terms(self, headers: Mapping[bytes, bytes]) -> int | None:
        """The length of the JSON that tensors follow. Raises InvalidInput."""
        value = headers.get(_HEADER_LENGTH)
        if value is None:
            return None
        if not value.isdigit() or len(value) > 18:
            raise InvalidInput(
                "Inference-Header-Content-Length: expected a number, "
                f"got {value.decode('latin-1')!r:.40}"
            )
        return int(value)

    def codec(self, model: ServedModel) -> V2Codec:
        return V2Codec(
            model.name,
            model.version,
            model.interface,
            Classes(model.interface, model.class_names),
            self._limits,
            self._shm,
            keeps_state=model.keeps_state,
            images=model.images,
        )


class V2Codec:
    """Decodes requests for one model and encodes its answers."""

    def __init__(
        self,
        name: str,
        version: str,
        interface: Interface,
        classes: Classes | None = None,
        limits: Limits | None = None,
        shm: SharedMemory | None = None,
        *,
        keeps_state: bool = False,
        images: ImageReader | None = None,
    ) -> None:
        """`keeps_state`: the model has variables, which each request finds as they were at the start. `images` reads
        images, for a model that takes them."""
        self._name = name
        self._interface = interface
        self._most = binary.most_bytes(interface)
        self._keeps_state = keeps_state
        self._limits = limits or Limits()
        self._shm = shm or SharedMemory(())
        self._values = ValueReader(interface, self._limits, images)
        self._image_input = None if images is None else images.spec.name
        self._has_texts = any(s.dtype == "BYTES" for s in interface.inputs)
        self._ports = {
            s.name: JsonPort(s, self._limits.elements, interface.max_batch)
            for s in interface.inputs
        }
        self._all = {
            flag: tuple(RequestedOutput(s.name, flag) for s in interface.outputs)
            for flag in (False, True)
        }
        self._names = tuple(s.name for s in interface.outputs)
        self._repeated = Repeated()
        if images is not None:
            spec = TensorSpec(images.spec.name, "BYTES", ("images",))
            self._encoded_port = JsonPort(spec, max(1, interface.max_batch))
            self._row_bytes = images.row_bytes
        self._encoder = answers.Encoder(
            name, version, interface, classes or Classes(interface), self._limits, self._shm
        )
        # To be asked before `encode`.
        self.written_bytes = self._encoder.written_bytes

    def check_size(self, size: int, header_length: int | None) -> None:
        """Raises InvalidInput; BodyTooLarge for more than the model's inputs can take."""
        if header_length is None:
            return
        if header_length > size:
            raise InvalidInput(f"the JSON is announced as {header_length} bytes of {size}")
        given = size - header_length
        if self._most is not None and given > self._most:
            raise BodyTooLarge(
                f"the inputs of '{self._name}' are at most {self._most} bytes, got {given}"
            )

    def decode(self, body: bytes | memoryview, header_length: int | None) -> V2Request:
        """Decode one infer request; `header_length` is Inference-Header-Content-Length.

        Raises InvalidInput; UnknownRegion, SharedMemoryOff.
        """
        if header_length is None:
            return self._request(parse(body, self._limits.json_depth), memoryview(b""))
        if header_length == 0:
            return self._raw_request(memoryview(body))
        if not 0 < header_length <= len(body):
            raise InvalidInput(
                f"Inference-Header-Content-Length: expected 0 to {len(body)}, got {header_length}"
            )
        view = memoryview(body)
        text, blobs = bytes(view[:header_length]), view[header_length:]
        request = self._repeated.find(text, blobs)
        if request is None:
            document = parse(text, self._limits.json_depth)
            request = self._request(document, blobs)
            self._repeated.keep(text, document, request)
        return request

    def text_bytes(self, size: int, header_length: int | None) -> int:
        """How much of a body of `size` has to be read piece by piece: JSON, and strings; the rest is taken
        as it is."""
        if header_length is None and self._image_input is not None and size > _SMALL_IMAGE:
            return max(size, IMAGE_WORK)  # it may hold one as base64
        if header_length is None or self._has_texts:
            return size
        if self._image_input is not None and (size - header_length) % self._row_bytes:
            return min(max(size, IMAGE_WORK), IMAGE_MOST)
        return min(size, header_length)

    def of_images(self, images: Sequence[bytes | memoryview]) -> V2Request:
        """A request with encoded images, whose answer is JSON. Raises InvalidInput."""
        read = self._values.read_images(images)
        return V2Request(read.inputs, read.rows, self._names, wanted=self._all[False])

    def encode(self, request: V2Request, outputs: Tensors, candidate: Candidate) -> Response:
        """Encode the requested outputs, on any thread; those wanted as binary follow the JSON in order.

        Raises InvalidInput for what JSON cannot express and what does not fit its region.
        """
        return self._encoder.encode(request, outputs, candidate)

    def _request(self, document: InferBody, blobs: memoryview) -> V2Request:
        parameters = document.parameters
        timeout: float | None = None
        priority, as_binary, allow_nan = 0, False, False
        if parameters:
            check_reserved(parameters)
            if self._keeps_state and is_in_sequence(parameters):
                raise no_sequences()
            timeout = timeout_of(parameters)
            priority = count(parameters, "priority", "a level")
            as_binary = flag(parameters, "binary_data_output", default=False)
            allow_nan = flag(parameters, "allow_nan", default=False)
        inputs = self._inputs(document, blobs)
        outputs = document.outputs
        if outputs:
            asked = self._outputs(outputs, as_binary)
            names, wanted = tuple(asked), tuple(asked.values())
        else:
            names, wanted = self._names, self._all[as_binary]
        rows = self._rows(inputs)
        return V2Request(inputs, rows, names, document.id, timeout, priority, wanted, allow_nan)

    def _rows(self, inputs: Tensors) -> int:
        """The batch size; each tensor's own type and shape have been checked."""
        interface = self._interface
        if len(inputs) == len(interface.inputs):
            if not interface.max_batch:
                return 1
            rows = 0
            for array in inputs.values():
                size: int = array.shape[0]
                if rows not in (0, size):
                    break
                rows = size
            else:
                if 1 <= rows <= interface.max_batch:
                    return rows
        return interface.check(inputs)

    def _inputs(self, document: InferBody, blobs: memoryview) -> Tensors:
        tensors: Tensors = {}
        offset = 0
        for entry in document.inputs:
            name = entry.name
            port = self._ports.get(name)
            if port is None:
                self._interface.input(name)
                raise AssertionError
            if name in tensors:
                raise InvalidInput(f"input '{name}' is given twice")
            if name == self._image_input and entry.datatype == "BYTES":
                encoded, offset = self._encoded(entry, blobs, offset)
                tensors |= self._values.read_images(encoded).inputs
                continue
            shape = port.shape_of(entry.shape, entry.datatype)
            if not entry.parameters:
                tensors[name] = port.array_of(shape, entry.data)
                continue
            data = self._from_region(entry, port.spec, shape)
            if data is None:
                size = _size(entry)
                if size is None:
                    tensors[name] = port.array_of(shape, entry.data)
                    continue
                if offset + size > len(blobs):
                    raise InvalidInput(
                        f"input '{name}': expected {size} bytes of binary data, "
                        f"got {len(blobs) - offset}"
                    )
                data = blobs[offset : offset + size]
                offset += size
            tensors[name] = binary.from_bytes(port.spec, shape, data)
        if offset != len(blobs):
            raise InvalidInput(f"{len(blobs) - offset} bytes of binary data belong to no input")
        return tensors

    def _encoded(self, entry: InputBody, blobs: memoryview, offset: int) -> tuple[list[bytes], int]:
        """The images of a BYTES input for an input of images: base64 in JSON, else as they are; and where the next
        input's bytes begin. Raises InvalidInput."""
        port = self._encoded_port
        shape = port.shape_of([math.prod(entry.shape)], "BYTES")
        size = _size(entry)
        if size is None:
            texts = port.array_of(shape, entry.data)
            what = f"input '{entry.name}'"
            return [decoded_b64(text.decode(), what) for text in texts.tolist()], offset
        if offset + size > len(blobs):
            raise InvalidInput(
                f"input '{entry.name}': expected {size} bytes of binary data, got {len(blobs) - offset}"
            )
        found = binary.from_bytes(port.spec, shape, blobs[offset : offset + size])
        return found.tolist(), offset + size

    def _from_region(
        self, entry: InputBody, spec: TensorSpec, shape: tuple[int, ...]
    ) -> memoryview | None:
        """The bytes of an input that is in shared memory; None for one that is not."""
        parameters = entry.parameters
        if SHM not in parameters:
            return None
        if entry.data is not msgspec.UNSET or "binary_data_size" in parameters:
            raise InvalidInput(f"input '{entry.name}' has data and {SHM}")
        region = region_of(parameters, f"input '{entry.name}'")
        assert region is not None
        return read_region(self._shm, region, spec, shape, self._limits.body_bytes)

    def _outputs(self, entries: list[Any], default: bool) -> dict[str, RequestedOutput]:
        wanted: dict[str, RequestedOutput] = {}
        for entry in entries:
            name, own = entry.name, entry.parameters
            spec = self._interface.output(name)
            if name in wanted:
                raise InvalidInput(f"output '{name}' is asked for twice")
            if not own:
                wanted[name] = RequestedOutput(name, default)
                continue
            classes = count(own, "classification", "a count", f"output '{name}' ")
            if classes:
                check_scores(spec)
            region = region_of(own, f"output '{name}'")
            if region is not None:
                if classes:
                    raise InvalidInput(f"output '{name}': classes do not go to shared memory")
                self._shm.check_room(region.region, region.offset, region.byte_size)
            as_binary = flag(own, "binary_data", default=default)
            wanted[name] = RequestedOutput(name, as_binary, classes, region)
        return wanted

    def _raw_request(self, body: memoryview) -> V2Request:
        """A body that is one tensor and nothing else: one input, at most one variable dimension."""
        interface = self._interface
        if len(interface.inputs) != 1:
            raise InvalidInput(
                f"a raw request needs one input, the model has {len(interface.inputs)}"
            )
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
            raise InvalidInput(
                f"input '{spec.name}' has several variable dimensions: say its shape"
            )
        fixed = tuple(int(d) for d in shape)
        if spec.dtype == "BYTES":
            if math.prod(fixed) != 1:
                raise InvalidInput(f"input '{spec.name}' has more than one string: say its shape")
            array = np.empty(1, dtype=object)
            array[0] = bytes(body)
            inputs = {spec.name: array.reshape(fixed)}
        else:
            inputs = {spec.name: binary.from_bytes(spec, fixed, body)}
        return V2Request(inputs, interface.check(inputs), self._names, wanted=self._all[True])


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


def _size(entry: InputBody) -> int | None:
    """How many bytes behind the JSON are this input's; None for an input with JSON data."""
    size = entry.parameters.get("binary_data_size")
    if size is None:
        return None
    if entry.data is not msgspec.UNSET:
        raise InvalidInput(f"input '{entry.name}' has both data and binary_data_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidInput(
            f"input '{entry.name}' binary_data_size: expected a size, got {size!r:.40}"
        )
    return size
