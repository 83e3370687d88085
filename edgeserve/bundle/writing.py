"""Writing a bundle, or another folder, all or nothing.

Everything is made in a hidden folder beside the destination, fsynced, then renamed. The folder is
locked while its writer lives: a second writer to the same place fails, and the next one removes what a
killed one left.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from edgeserve.bundle.files import file_sha256, write_errors
from edgeserve.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, encode
from edgeserve.errors import OutputExists, UsageError

if os.name == "posix":
    import fcntl

_LOCK: Final = ".lock"


class FolderKind(NamedTuple):
    """A kind of folder written whole: its name in messages, and the file that tells it is one."""

    name: str
    marker: str


BUNDLE: Final = FolderKind("bundle", MANIFEST_NAME)


class BundleWriter:
    """A bundle in the making. `root` becomes the bundle; `work` is scratch space that does not."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root = root
        self.work = work

    def entry(self, relative: str) -> FileEntry:
        """The manifest's record of a file already written below `root`."""
        path = self.root / relative
        return FileEntry(relative, file_sha256(path), path.stat().st_size)

    def write_manifest(self, manifest: Manifest) -> None:
        (self.root / MANIFEST_NAME).write_bytes(encode(manifest))


@contextlib.contextmanager
def bundle_writer(destination: Path, *, force: bool = False) -> Iterator[BundleWriter]:
    """Yield a BundleWriter; on success `destination` is the new bundle, on any failure it is untouched.

    Raises OutputExists (unless `force`), WriteFailed (disk full, no permission).
    """
    with folder_writer(destination, BUNDLE, force=force) as (root, work):
        yield BundleWriter(root, work)


@contextlib.contextmanager
def folder_writer(
    destination: Path, kind: FolderKind, *, force: bool = False
) -> Iterator[tuple[Path, Path]]:
    """Yield a folder that becomes `destination` on success, and one for scratch that does not.

    Both paths are absolute: converters run in processes with other working folders. Raises
    OutputExists (unless `force`), WriteFailed (disk full, no permission).
    """
    check_destination(destination, kind, force=force)
    with write_errors(destination), _claimed(destination, kind) as scratch:
        check_destination(destination, kind, force=force)  # another process may have ended just now
        root, work = scratch / kind.name, scratch / "work"
        root.mkdir()
        work.mkdir()
        yield root, work
        _share(root)
        _sync_tree(root)
        _replace(root, destination)


@contextlib.contextmanager
def _claimed(destination: Path, kind: FolderKind) -> Iterator[Path]:
    """A scratch folder beside `destination`, locked while the block runs, then removed.

    Raises OutputExists where another writer is at work on the same destination.
    """
    parent = destination.parent.absolute()
    parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(parent):
        if _remove_stale(destination):
            raise OutputExists(
                f"another process is writing {destination}",
                hint=f"wait until it has ended, or choose another -o for this {kind.name}",
            )
        scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=parent))
        remove = functools.partial(shutil.rmtree, scratch, ignore_errors=True)
        atexit.register(remove)  # should a signal interrupt the removal below
        lock = os.open(scratch / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        if os.name == "posix":
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield scratch
    finally:
        os.close(lock)
        remove()
        atexit.unregister(remove)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that leaves no file behind."""
    if os.name != "posix":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_destination(destination: Path, kind: FolderKind | None = None, *, force: bool) -> None:
    """Refuse at the start what would fail at the end. Raises OutputExists, UsageError."""
    kind = kind or BUNDLE
    if not destination.exists():
        return
    if not force:
        raise OutputExists(f"{destination} exists", hint="add --force to replace it, or choose -o")
    if not destination.is_dir() or not (
        (destination / kind.marker).is_file() or not any(destination.iterdir())
    ):
        raise UsageError(
            f"{destination} exists and is not a {kind.name}; --force replaces only {kind.name}s",
            hint="choose another -o, or remove it yourself",
        )


def _remove_stale(destination: Path) -> bool:
    """Remove scratch folders whose writer is gone (killed, machine lost power); whether one lives."""
    if os.name != "posix":
        return False
    lives = False
    for folder in destination.parent.glob(f".{destination.name}.partial-*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # just being made, or not ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lives = True
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    return lives


def _share(root: Path) -> None:
    """Make files as readable as the folder: some tools write files that only the owner can read."""
    readable = root.stat().st_mode & 0o666
    for file in root.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | readable)


def _sync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(new: Path, destination: Path) -> None:
    """Put `new` where `destination` is; the old one ends up at `new` or is gone."""
    if not destination.exists():
        new.rename(destination)
    elif not _exchange(new, destination):
        # Without an atomic exchange a reader may see no bundle for a moment, never half of one.
        old = new.with_name("replaced")
        destination.rename(old)
        new.rename(destination)
    parent = os.open(destination.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step with Linux's renameat2(2); False where that is not supported."""
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    result = renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange)
    return bool(result == 0)
