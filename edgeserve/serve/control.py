"""What clients change, and what there is to change: models and shared memory, whatever the protocol."""

from __future__ import annotations

from typing import Protocol

from edgeserve.serve.models.entries import IndexEntry
from edgeserve.serve.models.repository import ModelRepository, Parameters
from edgeserve.serve.shm import SharedMemory


class Control(Protocol):
    """Changes of one server; every method returns once it is done. Raises EdgeServeError."""

    async def index(self) -> list[IndexEntry]: ...

    async def load(self, name: str, parameters: Parameters | None = None) -> None: ...

    async def unload(self, name: str) -> None: ...

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None: ...

    async def unregister(self, name: str | None) -> None: ...


class OwnControl:
    """Changes of a server that is one process."""

    def __init__(self, repository: ModelRepository, shm: SharedMemory) -> None:
        self._repository = repository
        self._shm = shm

    async def index(self) -> list[IndexEntry]:
        """As ModelRepository.index."""
        return self._repository.index()

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        """As ModelRepository.load."""
        await self._repository.load(name, parameters)

    async def unload(self, name: str) -> None:
        """As ModelRepository.unload."""
        await self._repository.unload(name)

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """As SharedMemory.register."""
        self._shm.register(name, key, offset, byte_size)

    async def unregister(self, name: str | None) -> None:
        """As SharedMemory.unregister, of all regions if none is named."""
        if name is None:
            self._shm.unregister_all()
        else:
            self._shm.unregister(name)
