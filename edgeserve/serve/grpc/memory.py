"""What this protocol needs of shared memory, and a server without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Never, Protocol

from edgeserve.serve.grpc.errors import NotAllowed


class SharedRegion(Protocol):
    """One registered region."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def byte_size(self) -> int: ...


class SharedMemory(Protocol):
    """The registered regions; used on the event loop alone."""

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None: ...

    def unregister(self, name: str) -> None: ...

    def unregister_all(self) -> None: ...

    def status(self, name: str | None = None) -> Sequence[SharedRegion]: ...

    def read(self, name: str, offset: int, byte_size: int) -> memoryview: ...

    def check_room(self, name: str, offset: int, byte_size: int) -> None: ...

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None: ...


class NoSharedMemory:
    """Refuses everything."""

    def _refuse(self, *_: object) -> Never:
        raise NotAllowed("shared memory is off")

    register = unregister = unregister_all = status = read = check_room = write = _refuse
