"""System shared memory regions that clients register, so that tensors need not travel (Linux).

Regions are read and written with pread and pwrite, not mapped: a client that cuts its region short
while it is mapped would end the server with SIGBUS, and one that writes while its tensor is checked
could change what was checked.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from edgeserve.errors import InvalidInput, UsageError

_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_PREFIX: Final = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.-]+")
_KEY: Final = re.compile(r"/?[A-Za-z0-9_.-]{1,200}")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_MAX: Final = 1 << 40


class SharedMemoryOff(UsageError):
    """Clients may not register regions here (HTTP 403, gRPC PERMISSION_DENIED)."""

    def __init__(self) -> None:
        super().__init__("shared memory is off", hint="edgeserve run --shared-memory PREFIX")


class UnknownRegion(UsageError):
    """No region is registered under this name (HTTP 404, gRPC NOT_FOUND)."""


class Region(msgspec.Struct, frozen=True):
    """What a client registered: `byte_size` bytes from `offset` of the object `key`, called `name`."""

    name: str
    key: str
    offset: Annotated[int, msgspec.Meta(ge=0)]
    byte_size: Annotated[int, msgspec.Meta(ge=0)]


class SharedMemory:
    """The registered regions; owns a descriptor for each. Any thread may read and write them.

    A key must begin with one of the `prefixes`; without any, registering is off. Only objects that exist are
    opened; none is made or removed. Requests with much JSON are read on threads of their own, hence the
    lock: a descriptor must not be closed under them.
    """

    def __init__(self, prefixes: Iterable[str], regions: int = 256) -> None:
        """Raises UsageError for a prefix that would give clients access to other programs' memory."""
        prefixes = tuple(prefixes)
        for prefix in prefixes:
            if not _PREFIX.fullmatch(prefix):
                raise UsageError(
                    f"shared_memory '{prefix}' is not a valid prefix of names",
                    hint="letters, digits, - and _, at least two of them: --shared-memory edgeserve-",
                )
        self._prefixes = tuple(prefix.lstrip("/") for prefix in prefixes)
        self._limit = regions
        self._regions: dict[str, tuple[Region, int]] = {}
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        return bool(self._prefixes)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises SharedMemoryOff, InvalidInput."""
        if not self._prefixes:
            raise SharedMemoryOff
        if not _NAME.fullmatch(name):
            raise InvalidInput("region name: expected 1 to 200 printable characters")
        if name in self._regions:
            raise InvalidInput(f"shared memory region '{name}' is registered already")
        if len(self._regions) >= self._limit:
            raise InvalidInput(f"{self._limit} shared memory regions are registered, no more fit")
        if not _KEY.fullmatch(key) or not key.lstrip("/").startswith(self._prefixes):
            raise InvalidInput(f"key: expected a name that this server allows, got {key!r:.60}")
        if not (0 <= offset < _MAX and 0 < byte_size < _MAX):
            raise InvalidInput(
                f"region '{name}': expected offset >= 0 and byte_size > 0, got {offset} and {byte_size}"
            )
        region = Region(name, key, offset, byte_size)
        descriptor = _open(region)
        try:
            _check_size(region, descriptor, 0, byte_size)
        except InvalidInput:
            os.close(descriptor)
            raise
        self._regions[name] = (region, descriptor)

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all. An unknown one is not an error, as with Triton. Raises SharedMemoryOff."""
        if not self._prefixes:
            raise SharedMemoryOff
        with self._lock:
            for one in list(self._regions) if name is None else [name]:
                known = self._regions.pop(one, None)
                if known is not None:
                    os.close(known[1])

    def status(self, name: str | None = None) -> list[Region]:
        """All regions, or the named one. Raises SharedMemoryOff, UnknownRegion."""
        if not self._prefixes:
            raise SharedMemoryOff
        if name is None:
            return [region for region, _ in self._regions.values()]
        return [self._find(name)[0]]

    def read(self, name: str, offset: int, byte_size: int) -> memoryview:
        """A copy of `byte_size` bytes at `offset` of a region. Raises UnknownRegion, InvalidInput."""
        with self._lock:
            region, descriptor = self._find(name)
            _check_size(region, descriptor, offset, byte_size)
            buffer = bytearray(byte_size)
            view, done = memoryview(buffer), 0
            while done < byte_size:
                got = os.preadv(descriptor, [view[done:]], region.offset + offset + done)
                if not got:
                    raise InvalidInput(f"shared memory region '{name}' is shorter than registered")
                done += got
        return view

    def check_room(self, name: str, offset: int, byte_size: int) -> None:
        """Whether `write` could write that much. Raises UnknownRegion, InvalidInput."""
        with self._lock:
            region, descriptor = self._find(name)
            _check_size(region, descriptor, offset, byte_size)

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Raises UnknownRegion, InvalidInput."""
        view = memoryview(data).cast("B")
        with self._lock:
            region, descriptor = self._find(name)
            _check_size(region, descriptor, offset, len(view))
            done = 0
            while done < len(view):
                done += os.pwrite(descriptor, view[done:], region.offset + offset + done)

    def close(self) -> None:
        with self._lock:
            for _, descriptor in self._regions.values():
                os.close(descriptor)
            self._regions.clear()

    def _find(self, name: str) -> tuple[Region, int]:
        if not self._prefixes:
            raise SharedMemoryOff
        known = self._regions.get(name)
        if known is None:
            raise UnknownRegion(f"no shared memory region is registered as {name!r:.60}")
        return known


def _open(region: Region) -> int:
    path = _FOLDER / region.key.lstrip("/")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInput(
            f"shared memory region '{region.name}' cannot be opened: {error.strerror}"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(
            f"shared memory region '{region.name}' cannot be opened: not shared memory"
        )
    return descriptor


def _check_size(region: Region, descriptor: int, offset: int, byte_size: int) -> None:
    """Check against the registered size and the object's present size: its owner may have cut it."""
    if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
        raise InvalidInput(
            f"shared memory region '{region.name}': expected at most {region.byte_size} bytes, "
            f"got {byte_size} at offset {offset}"
        )
    end = region.offset + offset + byte_size
    size = os.fstat(descriptor).st_size
    if end > size:
        raise InvalidInput(
            f"shared memory region '{region.name}': expected an object of {end} bytes, got {size}"
        )
