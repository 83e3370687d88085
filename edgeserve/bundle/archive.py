"""A bundle as one file: a zip archive with the manifest first, its other members stored as they are.

What is asked for is taken out on demand, into a folder of this process, and checked on the way: opening
a candidate of a large bundle reads its own files and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
import zipfile
from pathlib import Path
from typing import Final

from edgeserve.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, decode
from edgeserve.bundle.reading import MAX_MANIFEST_BYTES, Bundle
from edgeserve.bundle.writing import write_errors
from edgeserve.errors import BundleError, OutputExists

_CHUNK: Final = 1 << 20
# Zip archives know no earlier time; the same bundle gives the same bytes.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


class ArchiveBundle(Bundle):
    """A bundle in a file. `root` is a folder of this process, removed when it ends."""

    def __init__(self, path: Path, manifest: Manifest, manifest_bytes: int) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="edgeserve-bundle-"))
        super().__init__(scratch, manifest)
        self.path = path
        self._manifest_bytes = manifest_bytes
        self._removed = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)

    @classmethod
    def read(cls, path: Path) -> ArchiveBundle:
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
        """Take the file out of the archive, unless it has been already. At most as many bytes are read
        as the manifest says it has."""
        destination = self.root / entry.path
        if destination.exists():
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(f"{destination.name}.partial")
        digest, left = hashlib.sha256(), entry.size_bytes
        try:
            with (
                zipfile.ZipFile(self.path) as archive,
                archive.open(entry.path) as member,
                partial.open("wb") as file,
            ):
                while chunk := member.read(min(_CHUNK, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        break
                    digest.update(chunk)
                    file.write(chunk)
        except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
            raise BundleError(
                f"{self.path} does not hold {entry.path}",
                cause=str(error),
                hint="copy the bundle again, or convert the model again",
            ) from None
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read", cause=str(error)) from None
        if left or digest.hexdigest() != entry.sha256:
            partial.unlink()
            raise BundleError(
                f"{entry.path} in {self.path} is not the file the bundle was written with",
                cause=f"expected sha256 {entry.sha256[:12]}… ({entry.size_bytes} bytes)",
                hint="copy the bundle again, or convert the model again",
            )
        partial.rename(destination)


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
