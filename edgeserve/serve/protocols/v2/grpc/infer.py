"""ModelInferRequest and ModelInferResponse for `protocols/grpc_inference.py`, with shared memory and classes."""

from __future__ import annotations

import weakref

from edgeserve.errors import InvalidInput
from edgeserve.serve.engine import Outcome
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.bodies.values import ValueReader
from edgeserve.serve.protocols.v2.classes import Classes
from edgeserve.serve.protocols.v2.grpc import codec
from edgeserve.serve.protocols.v2.parameters import no_sequences, read_region, write_region
from edgeserve.serve.protocols.v2.request import V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from edgeserve.tensors import Array, Tensors
from edgeserve.wire import binary


class InferMessages:
    """A MessageCodec."""

    def __init__(self, shm: SharedMemory, limits: Limits, *, streamed: bool) -> None:
        """`streamed`: each answer says that it is its request's last."""
        self._shm = shm
        self._limits = limits
        self._streamed = streamed
        self._classes: weakref.WeakKeyDictionary[ServedModel, Classes] = weakref.WeakKeyDictionary()
        self.parse = codec.parse

    def decode(self, parsed: codec.V2Parsed) -> codec.V2Decoded:
        """Raises InvalidInput, also for a tensor with more elements than the limit."""
        return codec.decode(parsed, self._limits.elements)

    def bind(
        self, decoded: codec.V2Decoded, model: ServedModel, remaining_s: float | None
    ) -> V2Request:
        """Raises InvalidInput, UnknownRegion, SharedMemoryOff."""
        if decoded.in_sequence and model.keeps_state:
            raise no_sequences()
        regions = self._from_regions(decoded)
        values = None
        if model.images is not None:
            values = ValueReader(model.interface, self._limits, model.images)
        return codec.bind(decoded, model.interface, regions, remaining_s, values)

    def written_bytes(self, request: V2Request, outputs: Tensors) -> int:
        """Raises InvalidInput for more than is sent."""
        size = sum([binary.content_bytes(outputs[name]) for name in request.outputs])
        limit = self._limits.output_bytes
        if size > limit:
            raise InvalidInput(f"the outputs are {size} bytes; the limit is {limit}")
        return size

    def encode(self, request: V2Request, model: ServedModel, result: Outcome) -> bytes:
        """Raises InvalidInput for an output that does not fit its region; UnknownRegion."""
        for wanted in request.wanted:
            if wanted.region is not None:
                name = wanted.name
                write_region(self._shm, wanted.region, name, result.outputs[name])
        head = codec.response_head(
            model.name, model.version, result.candidate, final=self._streamed
        )

        def best(name: str, scores: Array, count: int) -> Array:
            classes = self._classes.get(model)
            if classes is None:
                classes = self._classes[model] = Classes(model.interface, model.class_names)
            return classes.best(name, scores, count)

        return codec.encode(head, request, result.outputs, model.interface, best)

    def _from_regions(self, decoded: codec.V2Decoded) -> Tensors:
        """The inputs that lie in shared memory; outputs that go there must find room."""
        for wanted in decoded.outputs:
            if wanted.region is not None:
                region = wanted.region
                self._shm.check_room(region.region, region.offset, region.byte_size)
        tensors = {}
        for given in decoded.inputs:
            if given.region is not None:
                data = read_region(
                    self._shm, given.region, given.spec, given.shape, self._limits.body_bytes
                )
                tensors[given.spec.name] = binary.from_bytes(given.spec, given.shape, data)
        return tensors
