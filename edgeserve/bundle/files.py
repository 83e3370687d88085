"""Files of a bundle on disk: their paths, digests and arrays, and the errors of writing them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from edgeserve.bundle.manifest import FileEntry
from edgeserve.errors import BundleError, WriteFailed
from edgeserve.tensors import Tensors

_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def followed(path: Path) -> Path:
    """Where the links in a path lead now; the path as it is given if there are none."""
    resolved = path.resolve()
    return path if resolved == path.absolute() else resolved


def inside(root: Path, entry: FileEntry) -> Path:
    """The path of a file below `root`. Raises BundleError for one that leads elsewhere."""
    path = root / entry.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path} leads out of the bundle", cause="it is a link, or below one")
    return path


def load_npz(path: Path) -> Tensors:
    """Read an `.npz` without unpickling anything. Raises BundleError."""
    try:
        with path.open("rb") as file:
            return arrays_in(file, str(path))
    except OSError as error:
        raise BundleError(f"{path} is not a readable .npz", cause=str(error)) from None


def arrays_in(file: BinaryIO, name: str) -> Tensors:
    """The arrays of an open `.npz`, without unpickling anything; `name` is for errors. Raises BundleError."""
    try:
        archive = np.load(file, allow_pickle=False)
        return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{name} is not a readable .npz", cause=str(error)) from None


@contextlib.contextmanager
def write_errors(destination: Path) -> Iterator[None]:
    """Turn OSErrors of writing into WriteFailed with what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            hint = "free some space or choose another -o; nothing was left behind"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            hint = "choose an -o that you may write to"
        else:
            hint = "choose another -o"
        raise WriteFailed(f"cannot write {destination}", cause=str(error), hint=hint) from error
