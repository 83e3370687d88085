"""Messages between an isolated process and its owner. Tensors themselves are in shared memory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.bundle import VariantFiles
from edgeserve.errors import EdgeServeError, InferenceFailed
from edgeserve.runtimes import LoadOptions, Placement
from edgeserve.tensors import TensorSpec
from edgeserve.wire.failures import Failure

MESSAGE_BYTES: Final = 1 << 16
_TEXT: Final = 4000


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Place(msgspec.Struct, frozen=True, array_like=True):
    """The place of one tensor in a segment. `packed` marks strings, which have no fixed size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    packed: bool = False


class Open(_Message, frozen=True):
    """Open this model. `model` is a VariantFiles; `faults` are injected faults, `fault_state` is the folder
    that records which of them were used up."""

    runtime: str
    model: msgspec.Raw
    device: str
    options: LoadOptions
    label: str
    faults: tuple[str, ...] = ()
    fault_state: str = ""


class Ready(_Message, frozen=True):
    """The session is open."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    concurrency: int


class Inputs(_Message, frozen=True):
    """Run the inputs in segment `source`; write the outputs to `target` if they fit into `room` bytes.

    New segments travel with the message, as descriptors, in the order of `created` (number, size);
    the isolated process unmaps those in `dropped`.
    """

    inputs: tuple[Place, ...]
    source: int
    target: int
    room: int
    created: tuple[tuple[int, int], ...] = ()
    dropped: tuple[int, ...] = ()


class Outputs(_Message, frozen=True):
    """The outputs are in the target segment."""

    outputs: tuple[Place, ...]


class TooLarge(_Message, frozen=True):
    """The outputs need `size` bytes; the isolated process keeps them until it gets an OutputSegment."""

    size: int


class OutputSegment(_Message, frozen=True):
    """The segment for outputs that were TooLarge; it travels with the message."""

    number: int
    size: int


class Raised(_Message, frozen=True):
    """An error, to be raised again by the owner."""

    failure: Failure


class AskPlacement(_Message, frozen=True):
    """Asks for the session's placement."""


class PlacementFound(_Message, frozen=True):
    """The answer to AskPlacement."""

    placement: Placement


class Ping(_Message, frozen=True):
    """Heartbeat on the control channel, answered with the same number."""

    number: int


class Close(_Message, frozen=True):
    """Close the session and end the process."""


Message = (
    Open | Ready | Inputs | Outputs | TooLarge | OutputSegment | Raised | AskPlacement | PlacementFound | Ping | Close
)  # fmt: skip

encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
decode = _decode.decode


def _path_of(kind: type[Any], value: Any) -> Any:
    return kind(value)


def pack_model(model: VariantFiles) -> msgspec.Raw:
    return msgspec.Raw(encode(model))


def unpack_model(data: msgspec.Raw) -> VariantFiles:
    model: VariantFiles = msgspec.msgpack.decode(data, type=VariantFiles, dec_hook=_path_of)
    return msgspec.structs.replace(model, path=Path(model.path))


def raised(error: Exception) -> Raised:
    """An exception as a message; one that is not an EdgeServeError becomes InferenceFailed. Cut so that the message
    fits into MESSAGE_BYTES."""
    if not isinstance(error, EdgeServeError):
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        error = InferenceFailed("the engine failed", cause=cause)
    return Raised(Failure.of(error, _TEXT))


def receive(channel: socket.socket, size: int = MESSAGE_BYTES) -> tuple[bytes, list[int]]:
    """The next message and the descriptors sent with it; empty when the other side is gone."""
    data, ancillary, _, _ = channel.recvmsg(size, _ANCILLARY_BYTES)
    found: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += memoryview(content[: len(content) // 4 * 4]).cast("i").tolist()
    return data, found


_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * 8)
