"""The parameters of requests, inputs and outputs, over HTTP and gRPC: what they mean, and their shared memory.

Source: Triton's protocol/extension_parameters.md, extension_shared_memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.v2.request import OutputRegion
from edgeserve.serve.shm import SharedMemory
from edgeserve.tensors import Array, TensorSpec
from edgeserve.wire import binary

SHM: Final = "shared_memory_region"
_SEQUENCE: Final = ("sequence_id", "sequence_start", "sequence_end")

Parameters = Mapping[str, Any]


def check_reserved(parameters: Parameters) -> None:
    """Raise InvalidInput for names that mean something to other servers of this protocol, but not here."""
    for name in parameters:
        if name == "headers" or name.startswith("triton_"):
            raise InvalidInput(f"parameter '{name:.60}' is reserved")


def is_in_sequence(parameters: Parameters) -> bool:
    """Whether a request names a sequence. A model without a state answers it as any other."""
    return any(parameters.get(name) not in (None, 0, False, "") for name in _SEQUENCE)


def no_sequences() -> InvalidInput:
    """For requests in a sequence to a model that keeps a state."""
    return InvalidInput(
        "parameter 'sequence_id': this model starts each request from its initial state; "
        "sequences are not supported"
    )


def timeout_of(parameters: Parameters) -> float | None:
    """Triton's `timeout`, which is in microseconds, in seconds; None if it is not there, 0: none."""
    if "timeout" not in parameters:
        return None
    return count(parameters, "timeout", "microseconds") / 1e6


def count(parameters: Parameters, name: str, what: str, whose: str = "parameter ") -> int:
    """A number of 0 or more; 0 if it is not there. Raises InvalidInput."""
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        shown = f"'{name}'" if whose == "parameter " else name
        raise InvalidInput(f"{whose}{shown}: expected {what}, got {value!r:.40}")
    return value


def flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    """True or false. Raises InvalidInput."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter '{name}': expected true or false, got {value!r:.40}")
    return value


def region_of(parameters: Parameters, whose: str) -> OutputRegion | None:
    """The place in shared memory of `whose` data; None if it is not there. Raises InvalidInput."""
    if SHM not in parameters:
        return None
    region = parameters[SHM]
    if not isinstance(region, str):
        raise InvalidInput(f"{whose} {SHM}: expected a name, got {region!r:.40}")
    if "shared_memory_byte_size" not in parameters:
        raise InvalidInput(f"{whose} shared_memory_byte_size: expected a size, got nothing")
    return OutputRegion(
        region,
        count(parameters, "shared_memory_offset", "an offset", f"{whose} "),
        count(parameters, "shared_memory_byte_size", "a size", f"{whose} "),
    )


def read_region(
    shm: SharedMemory, region: OutputRegion, spec: TensorSpec, shape: tuple[int, ...], most: int
) -> memoryview:
    """The bytes of an input; of strings at most `most`. Raises InvalidInput, UnknownRegion, SharedMemoryOff."""
    binary.check_size(spec, shape, region.byte_size)
    if spec.dtype == "BYTES" and region.byte_size > most:
        raise InvalidInput(
            f"input '{spec.name}': expected at most {most} bytes, got {region.byte_size}"
        )
    return shm.read(region.region, region.offset, region.byte_size)


def write_region(shm: SharedMemory, region: OutputRegion, name: str, array: Array) -> int:
    """Write an output; how many bytes it has. Raises InvalidInput, UnknownRegion, SharedMemoryOff."""
    data = binary.to_bytes(array)
    if len(data) > region.byte_size:
        raise InvalidInput(
            f"output '{name}': expected {region.byte_size} bytes of shared memory to be enough, "
            f"got {len(data)} bytes"
        )
    shm.write(region.region, region.offset, data)
    return len(data)
