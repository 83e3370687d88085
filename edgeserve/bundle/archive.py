"""Reading members of a bundle that is one file, a zip archive, without unpacking the others."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from edgeserve.bundle.manifest import MANIFEST_NAME, FileEntry
from edgeserve.errors import BundleError


def manifest_in(path: Path, limit: int) -> bytes:
    """The archive's manifest, `limit` + 1 bytes if it is longer. Raises BundleError when the file is not an
    archive with a manifest."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MANIFEST_NAME) as file:
            return file.read(limit + 1)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, NotImplementedError) as error:
        raise BundleError(
            f"{path} is not a bundle",
            cause=f"it is not an archive with a {MANIFEST_NAME}: {error}",
            hint="a bundle is the folder that `edgeserve convert` writes, or the file that "
            "`edgeserve archive` makes of it",
        ) from None


def members(path: Path) -> set[str]:
    """The names of all members."""
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def member(path: Path, entry: FileEntry) -> bytes:
    """A file of an archive: at most one byte more than the manifest says it has. Raises BundleError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(entry.path) as file:
            return file.read(entry.size_bytes + 1)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, zlib.error) as error:
        raise BundleError(
            f"{path} does not hold {entry.path}",
            cause=str(error),
            hint="copy the bundle again, or convert the model again",
        ) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read", cause=str(error)) from None
