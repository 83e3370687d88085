"""A bundle as one file: a zip archive with the manifest first, its other members stored as they are.

What is asked for is read from there on demand, and checked on the way: opening a candidate of a large bundle
reads its own files and nothing else. Only what somebody needs as a file is unpacked, into a folder of this process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, decode
from edgeserve.bundle.reading import (
    MAX_MANIFEST_BYTES,
    Bundle,
    VariantFiles,
    followed,
    read_entry,
    variant_files,
)
from edgeserve.bundle.scratch import no_room, scratch_folder
from edgeserve.bundle.writing import write_errors
from edgeserve.errors import BundleError, OutputExists

_CHUNK: Final = 1 << 20
# Zip archives know no earlier time; the same bundle gives the same bytes.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


class ArchiveBundle(Bundle):
    """A bundle in a file. What is read of it is read from there. `root` is a folder of this process for what
    must be a file of its own; it is made when the first one is, and removed with this object."""

    def __init__(self, path: Path, manifest: Manifest, manifest_bytes: int) -> None:
        super().__init__(path, manifest)
        self._file = followed(path)
        self._manifest_bytes = manifest_bytes
        self._scratch: Path | None = None

    def sealed_files(self, variant_id: str) -> VariantFiles:
        sealed = variant_files(
            self.manifest.variant(variant_id), self.path, self.manifest.interface
        )
        return msgspec.structs.replace(sealed, archive=str(self._file))

    def read(self, entry: FileEntry) -> bytes:
        return read_entry(entry, self.path, str(self._file))

    def variant_files(self, variant_id: str) -> VariantFiles:
        self._unpacked()
        return super().variant_files(variant_id)

    def verified_path(self, entry: FileEntry) -> Path:
        self._unpacked()
        return super().verified_path(entry)

    def _unpacked(self) -> None:
        """Make the folder. Raises WriteFailed."""
        with self._lock:
            if self._scratch is None:
                self._scratch, remove = scratch_folder()
                self.root = self._scratch
                weakref.finalize(self, remove)

    @classmethod
    def of(cls, path: Path) -> ArchiveBundle:
        """Raises BundleError when the file is no archive, or holds no valid manifest."""
        try:
            with zipfile.ZipFile(path) as archive, archive.open(MANIFEST_NAME) as member:
                data = member.read(MAX_MANIFEST_BYTES + 1)
        except (zipfile.BadZipFile, KeyError, OSError, EOFError, NotImplementedError) as error:
            raise BundleError(
                f"{path} is not a bundle",
                cause=f"it is no archive with a {MANIFEST_NAME}: {error}",
                hint="a bundle is the folder that `edgeserve convert` writes, or the file that "
                "`edgeserve archive` makes of it",
            ) from None
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"the manifest in {path} is larger than one can be")
        return cls(path, decode(data, f"{path}: {MANIFEST_NAME}"), len(data))

    @property
    def manifest_bytes(self) -> int:
        return self._manifest_bytes

    def present(self) -> set[str]:
        with zipfile.ZipFile(self.path) as archive:
            return set(archive.namelist())

    def _provide(self, entry: FileEntry) -> None:
        """Take the file out of the archive, unless it has been already."""
        destination = self.root / entry.path
        if destination.exists():
            return
        data = self.read(entry)
        partial = destination.with_name(f"{destination.name}.partial")
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.rename(destination)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise no_room(self.root, f"{entry.path} of {self.path}", len(data), error) from None


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


def pack(bundle: Bundle, destination: Path, *, force: bool = False) -> None:
    """Write a bundle as one file: whole, or not at all.

    Raises OutputExists (unless `force`), BundleError (a file of it is damaged), WriteFailed.
    """
    # Only a file is replaced: --force must not put one in the place of a folder or a device.
    if destination.exists() and not (destination.is_file() and force):
        raise OutputExists(
            f"{destination} exists", hint="choose another -o, or --force to replace a file"
        )
    with write_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{destination.name}.partial-", dir=destination.parent
        )
        partial = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                    _add(archive, MANIFEST_NAME, bundle.root / MANIFEST_NAME)
                    for entry in bundle.manifest.files():
                        _add(archive, entry.path, bundle.verified_path(entry))
                file.flush()
                os.fsync(file.fileno())
            partial.chmod(0o644)
            partial.rename(destination)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    info.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(info, "w") as member:
        shutil.copyfileobj(source, member, _CHUNK)
