"""What a worker process and its owner say to each other. Tensors themselves lie in shared memory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve import errors
from edgeserve.bundle import VariantFiles
from edgeserve.errors import EdgeServeError, InferenceFailed
from edgeserve.runtimes import LoadOptions, Placement
from edgeserve.tensors import TensorSpec

MESSAGE_BYTES: Final = 1 << 16
_TEXT: Final = 4000


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where one tensor lies in a segment. `packed` tells texts, which have no fixed size, from numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    packed: bool = False


class Open(_Message, frozen=True):
    """Open this model. `model` is a VariantFiles; `faults` are injected ones, `fault_state` the folder
    where those that were used up are noted."""

    runtime: str
    model: msgspec.Raw
    device: str
    options: LoadOptions
    label: str
    faults: tuple[str, ...] = ()
    fault_state: str = ""


class Opened(_Message, frozen=True):
    """The session is there."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    concurrency: int


class Call(_Message, frozen=True):
    """Run inputs from segment `source`; put the outputs into `target` if they fit into `room` bytes.

    New segments travel with the message, as descriptors, in the order of `created` (number, size);
    the worker forgets those in `dropped`.
    """

    inputs: tuple[Place, ...]
    source: int
    target: int
    room: int
    created: tuple[tuple[int, int], ...] = ()
    dropped: tuple[int, ...] = ()


class Answer(_Message, frozen=True):
    """The outputs are in the target segment."""

    outputs: tuple[Place, ...]


class TooLarge(_Message, frozen=True):
    """The outputs need `size` bytes; the worker holds them until it is given a segment."""

    size: int


class Target(_Message, frozen=True):
    """The segment for outputs that were TooLarge; it travels with the message."""

    number: int
    size: int


class Failed(_Message, frozen=True):
    """An error, to be raised again by its class's name."""

    kind: str
    message: str
    cause: str | None
    hint: str | None


class AskPlacement(_Message, frozen=True):
    """Ask the session for its placement."""


class Placed(_Message, frozen=True):
    placement: Placement


class Ping(_Message, frozen=True):
    """Are you there? Sent on the control channel, answered with the same number."""

    number: int


class Close(_Message, frozen=True):
    """Close the session and end."""


Message = (
    Open | Opened | Call | Answer | TooLarge | Target | Failed | AskPlacement | Placed | Ping | Close
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


def failure(error: Exception) -> Failed:
    """An exception as a message; one that is no EdgeServeError becomes InferenceFailed."""
    if isinstance(error, EdgeServeError):
        kind, message, cause = type(error).__name__, error.message, error.cause
        return Failed(kind, _short(message), _short(cause) if cause else None, error.hint)
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    return Failed(InferenceFailed.__name__, "the engine failed", _short(cause), None)


def _short(text: str) -> str:
    """What fits into one message beside the rest."""
    return text if len(text) <= _TEXT else text[:_TEXT] + "…"


def error_of(failed: Failed) -> EdgeServeError:
    """The exception again. Classes with other constructors than the base's come back as that base."""
    found = getattr(errors, failed.kind, InferenceFailed)
    if found is errors.DependencyMissing:
        found = errors.EnvironmentProblem
    error: EdgeServeError = found(failed.message, cause=failed.cause, hint=failed.hint)
    return error


def receive(channel: socket.socket, size: int = MESSAGE_BYTES) -> tuple[bytes, list[int]]:
    """The next message and the descriptors that came with it; empty when the other side is gone."""
    data, ancillary, _, _ = channel.recvmsg(size, _ANCILLARY_BYTES)
    found: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += memoryview(content[: len(content) // 4 * 4]).cast("i").tolist()
    return data, found


_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * 8)
