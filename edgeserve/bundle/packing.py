"""Writing a bundle as one file: a zip archive with the manifest first, its other members uncompressed."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from edgeserve.bundle.files import write_errors
from edgeserve.bundle.manifest import MANIFEST_NAME
from edgeserve.bundle.reading import Bundle
from edgeserve.errors import OutputExists

_CHUNK: Final = 1 << 20
# The earliest time a zip archive can hold: the same bundle always gives the same bytes.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


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
