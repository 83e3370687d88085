"""Folders for unpacked files: removed when the process ends, or by a later process if it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeserve.errors import WriteFailed

if os.name == "posix":
    import fcntl

_PREFIX: Final = "edgeserve-bundle-"
_LOCK: Final = ".lock"
_HINT: Final = "set TMPDIR to a folder with free space, or unzip the archive and use the folder"


def scratch_folder() -> tuple[Path, Callable[[], None]]:
    """A new folder in TMPDIR, and the function that removes it. It is locked while this process lives; folders
    of processes that have ended are removed first. Raises WriteFailed."""
    try:
        parent = Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            if os.name != "posix":
                break
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / _LOCK).exists():
                break
            os.close(lock)  # another process took it for abandoned before it was locked
    except OSError as error:
        where = error.filename or os.environ.get("TMPDIR") or tempfile.gettempdir()
        raise WriteFailed(
            f"cannot unpack anything in TMPDIR ({where})", cause=str(error), hint=_HINT
        ) from None

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(lock)

    return folder, remove


def no_room(folder: Path, what: str, needed: int, error: OSError) -> WriteFailed:
    """Why a file could not be unpacked into a scratch folder."""
    try:
        free = f"; {shutil.disk_usage(folder).free} bytes are free"
    except OSError:
        free = ""
    return WriteFailed(
        f"{what} cannot be unpacked in TMPDIR ({folder.parent})",
        cause=f"{error.strerror or error}: it needs {needed} bytes{free}",
        hint=_HINT,
    )


def _remove_abandoned(parent: Path) -> None:
    if os.name != "posix":
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # just being made, or somebody else's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its process lives
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
