"""Where compiled models for GPUs and NPUs are kept: compiling takes seconds to minutes there.

OpenVINO checks itself that a cached blob fits the model, the device, the driver and its version; a folder
for each model file keeps the blobs apart, so that old ones can be found and removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Final

from edgeserve.bundle import VariantFiles
from edgeserve.runtimes.base import LoadOptions

# Folders of models that were not opened for so long are removed.
_KEEP_DAYS: Final = 60


def cache_root() -> Path:
    """`compiled` in the user's cache, or in EDGESERVE_CACHE_DIR where that is set."""
    set_to = os.environ.get("EDGESERVE_CACHE_DIR")
    if set_to:
        return Path(set_to) / "compiled"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgeserve" / "compiled"


def cache_folder(model: VariantFiles, device: str, options: LoadOptions) -> Path | None:
    """The folder for this file on this device, made; None for a CPU, unless the options say
    `cache = true`, where they say `cache = false`, and where nothing can be written."""
    if not _is_cached(device, options):
        return None
    try:
        key = _key(model, device)
        folder = cache_root() / key
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        _remove_old(folder.parent)
    except OSError:
        return None
    return folder


def forget_compiled(model: VariantFiles, device: str, options: LoadOptions) -> None:
    """Remove what `cache_folder` keeps of this model: the next opening compiles."""
    if _is_cached(device, options):
        with contextlib.suppress(OSError):
            shutil.rmtree(cache_root() / _key(model, device))


def _is_cached(device: str, options: LoadOptions) -> bool:
    wanted = options.options.get("cache", device != "CPU")  # a CPU compiles in less than it reads
    return bool(wanted) and "CACHE_DIR" not in options.options


def _key(model: VariantFiles, device: str) -> str:
    """Digests of the files where a manifest has them; else name, size and time: large models are opened often."""
    path, seen = model.path, [entry.sha256 for entry in model.files]
    for file in (path, path.with_suffix(".bin")) if not seen else ():
        if file.exists():
            about = file.stat()
            seen.append(f"{file.resolve()}\0{about.st_size}\0{about.st_mtime_ns}")
    digest = hashlib.sha256("\0".join([*seen, device]).encode()).hexdigest()[:16]
    return f"{path.stem}-{device.lower()}-{digest}"


def _remove_old(root: Path) -> None:
    limit = time.time() - _KEEP_DAYS * 86400
    for folder in root.iterdir():
        if folder.is_dir() and folder.stat().st_mtime < limit:
            shutil.rmtree(folder, ignore_errors=True)
