"""A file that grows, of which what is committed survives a kill."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgeserve.errors import UsageError, WriteFailed

_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def resumable(path: Path) -> Iterator[None]:
    """Turn OSErrors of writing into WriteFailed with what to do about it."""
    try:
        yield
    except OSError as error:
        hint = "add --resume to continue once it can be written"
        if error.errno in _DISK_FULL:
            hint = "free some space, then add --resume to continue"
        elif error.errno in _NO_RIGHT:
            hint = "choose an -o that you may write to"
        raise WriteFailed(f"cannot write {path}", cause=str(error), hint=hint) from error


class GrowingFile:
    """Written at its end. Everything after `position`, the last committed length, is cut off on opening."""

    def __init__(self, path: Path, position: int) -> None:
        """Raises UsageError if the file is shorter than that, or another process writes it."""
        self.path = path
        with resumable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "w+b")
        try:
            self._lock()
            length = os.fstat(self._file.fileno()).st_size
            if length < position:
                raise UsageError(
                    f"{path} has {length} bytes, of which {position} were written before",
                    cause="the file was changed",
                    hint="--force starts again",
                )
            with resumable(path):
                self._file.truncate(position)
                self._file.seek(position)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another process is writing {self.path}", hint="wait for it, or choose another -o"
            ) from None

    def write(self, data: bytes) -> None:
        with resumable(self.path):
            self._file.write(data)

    def commit(self) -> int:
        """Have all of it on disk; its length."""
        with resumable(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is not committed is written again
            self._file.close()


def replace(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with resumable(path):
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
