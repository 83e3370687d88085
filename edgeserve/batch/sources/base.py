"""What a source of rows is, and how one is recognised again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from edgeserve.batch.rows import DecodedRow, Portion, RowName
from edgeserve.errors import DataError

# Files up to this size are digested whole, larger ones in samples and by the time of their last change.
_WHOLE: Final = 256 << 20
_SAMPLE: Final = 1 << 20
_SAMPLES: Final = 64


class SourceIdentity(msgspec.Struct, frozen=True):
    """What a resumed run compares: the size in bytes (of a folder: in files) and a digest."""

    size: int
    digest: str


class RowSource(Protocol):
    """Rows in a fixed order. `key` is the name of the results' first column, `total` the number of rows if it
    is known, `remarks` what the user should know before the run.

    `portions` is called once, from one thread; `decode` from several.
    """

    key: str
    total: int | None
    remarks: tuple[str, ...]

    def identity(self) -> SourceIdentity: ...

    def portions(self, skip: int, size: Callable[[], int]) -> Iterator[Portion]:
        """The rows after the first `skip`, `size()` at a time. Raises DataError."""
        ...

    def decode(self, name: RowName, value: Any) -> DecodedRow:
        """The inputs, checked. Raises InvalidInput, DataError."""
        ...


def file_identity(path: Path) -> SourceIdentity:
    """Raises DataError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            found = path.stat()
            if found.st_size <= _WHOLE:
                while block := file.read(_SAMPLE):
                    digest.update(block)
            else:
                digest.update(str(found.st_mtime_ns).encode())
                for index in range(_SAMPLES):
                    file.seek((found.st_size - _SAMPLE) * index // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise DataError(f"{path} cannot be read", cause=error.strerror) from None
    return SourceIdentity(found.st_size, digest.hexdigest())
