"""Tool environments: virtual environments under the user's cache for converters whose packages clash.

Made on first use from pinned requirements, reused afterwards, removable. A marker written last says that
one is complete; a lock keeps two processes from making the same one, and from removing one in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from edgeserve import pip
from edgeserve.errors import ToolEnvironmentError, UsageError, did_you_mean
from edgeserve.progress import Say

if os.name == "posix":
    import fcntl

_MARKER: Final = "edgeserve-complete.json"


class EnvironmentRecord(msgspec.Struct, frozen=True):
    """An environment on disk; `complete` is False while it is being made, or after that was killed."""

    name: str
    path: str
    requires: tuple[str, ...]
    size_bytes: int
    complete: bool


class _Marker(msgspec.Struct, frozen=True):
    requires: tuple[str, ...]


def cache_root() -> Path:
    """`EDGESERVE_CACHE_DIR`, else the platform's cache folder."""
    explicit = os.environ.get("EDGESERVE_CACHE_DIR")
    if explicit:
        return Path(explicit).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgeserve"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgeserve"


class ToolEnvironment:
    """One environment, named after its converter and a digest of what goes into it."""

    def __init__(
        self, name: str, requires: tuple[str, ...], pip_arguments: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.requires = requires
        self.pip_arguments = pip_arguments
        base = [sys.implementation.cache_tag, sys.platform, platform.machine()]
        content = json.dumps([base, requires, pip_arguments])
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        self.path = _folder() / f"{name}-{digest}"

    @property
    def python(self) -> Path:
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def complete(self) -> bool:
        return (self.path / _MARKER).is_file() and self.python.exists()

    def ensure(self, say: Say) -> Path:
        """The environment's interpreter, making the environment first if need be.

        Raises ToolEnvironmentError with pip's own words.
        """
        with self.in_use(say) as python:
            return python

    @contextlib.contextmanager
    def in_use(self, say: Say) -> Iterator[Path]:
        """`ensure`, and while the block runs nobody can remove the environment."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(_lock_file(self.path), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            _lock(lock, exclusive=False)
            if not self.complete:
                if not _try_lock(lock):
                    say(f"waiting for another process that makes {self.name}", None)
                    _lock(lock, exclusive=True)
                if not self.complete:  # another process may have made it meanwhile
                    self._create(lock, say)
                _lock(lock, exclusive=False)
            yield self.python
        finally:
            os.close(lock)

    def download(self, folder: Path, say: Say) -> None:
        """Fill a folder with the wheels that the environment is made of, for `EDGESERVE_WHEELHOUSE` on a
        machine without a network. They fit this Python version and platform.

        Raises ToolEnvironmentError with pip's own words.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolEnvironmentError(
                f"the wheels of {self.name} cannot be written to {folder}", cause=str(error)
            ) from error
        say(f"downloading the wheels of {self.name}", None)
        done = pip.run(
            [sys.executable, "-m", "pip", "download", *pip.OPTIONS, "--dest", str(folder),
             *self.pip_arguments, *self.requires],
            pip.telling(self.name, say),
        )  # fmt: skip
        if done.code != 0:
            raise ToolEnvironmentError(
                f"the wheels of {self.name} cannot be downloaded",
                cause=done.cause,
                hint=done.hint("do this on a machine that can reach one"),
            )

    def _create(self, lock: int, say: Say) -> None:
        """Make the environment; whatever a killed process left there goes first."""
        say(f"creating the tool environment {self.name}", None)
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            bare = ["--without-pip"] if _pip_reaches_out() else []
            self._run([sys.executable, "-m", "venv", *bare, str(self.path)], lock, pip.ignore)
            self._run(self._pip_command(), lock, pip.telling(self.name, say))
            marker = self.path / _MARKER
            partial = marker.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(_Marker(self.requires)))
            partial.rename(marker)
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise self._unwritable(error) from error
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _pip_command(self) -> list[str]:
        wheelhouse = os.environ.get("EDGESERVE_WHEELHOUSE")
        if wheelhouse and not Path(wheelhouse).is_dir():
            raise ToolEnvironmentError(
                f"the tool environment {self.name} cannot be created",
                cause=f"EDGESERVE_WHEELHOUSE is not a folder: {wheelhouse}",
                hint="name a folder of wheels, or unset it to use the package index",
            )
        offline = ["--no-index", "--find-links", wheelhouse] if wheelhouse else ["--retries", "2"]
        command = (
            [sys.executable, "-m", "pip", "--python", str(self.python)]
            if _pip_reaches_out()
            else [str(self.python), "-I", "-m", "pip"]
        )
        return [
            *(*command, "install", *pip.OPTIONS, *offline),
            *self.pip_arguments,
            *self.requires,
        ]

    def _run(self, command: list[str], lock: int, on_line: Callable[[str], None]) -> None:
        """Run one step of making the environment.

        The step inherits the lock: should this process be killed, nobody else starts to make the
        environment before an orphaned pip has ended.
        """
        done = pip.run(command, on_line, pass_fds=(lock,) if os.name == "posix" else ())
        if done.code != 0:
            raise ToolEnvironmentError(
                f"the tool environment {self.name} cannot be created",
                cause=done.cause,
                hint=done.hint(
                    "fill a folder with `edgeserve env download` elsewhere and name it in "
                    "EDGESERVE_WHEELHOUSE"
                ),
            )

    def _unwritable(self, error: OSError) -> ToolEnvironmentError:
        return ToolEnvironmentError(
            f"the tool environment {self.name} cannot be written",
            cause=str(error),
            hint="free some space, or put it elsewhere with EDGESERVE_CACHE_DIR",
        )


def list_environments() -> list[EnvironmentRecord]:
    """All environments on disk, by name."""
    records = []
    for path in sorted(_folder().glob("*-*")):
        if not path.is_dir():
            continue
        marker = _read_marker(path)
        size = sum(f.lstat().st_size for f in path.rglob("*") if not f.is_dir())
        name = path.name.rpartition("-")[0]
        requires = marker.requires if marker else ()
        records.append(EnvironmentRecord(name, str(path), requires, size, marker is not None))
    return records


def remove_environments(name: str) -> list[EnvironmentRecord]:
    """Remove every environment called `name`; what was removed.

    Raises UsageError for none, ToolEnvironmentError when one is in use.
    """
    known = list_environments()
    chosen = [r for r in known if r.name == name]
    if not chosen:
        raise UsageError(
            f"there is no tool environment '{name}'",
            hint=did_you_mean(name, [r.name for r in known], "edgeserve env list shows them"),
        )
    for record in chosen:
        path = Path(record.path)
        # The lock file stays: removing it would let a third process lock a file nobody else sees.
        lock = os.open(_lock_file(path), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if not _try_lock(lock):
                raise ToolEnvironmentError(
                    f"the tool environment {name} is in use",
                    hint="wait for the other edgeserve process to end",
                )
            (path / _MARKER).unlink(missing_ok=True)  # half removed must not look complete
            shutil.rmtree(path)
        finally:
            os.close(lock)
    return chosen


def _folder() -> Path:
    return cache_root() / "envs"


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _read_marker(path: Path) -> _Marker | None:
    try:
        return msgspec.json.decode((path / _MARKER).read_bytes(), type=_Marker)
    except (OSError, msgspec.MsgspecError):
        return None


def _try_lock(descriptor: int) -> bool:
    """Lock exclusively unless somebody else holds the lock."""
    if os.name == "posix":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _lock(descriptor: int, *, exclusive: bool) -> None:
    if os.name == "posix":
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def _pip_reaches_out() -> bool:
    """Whether this interpreter's pip can install into another environment, which so needs no pip of its
    own: that saves seconds, and ensurepip, which some systems package apart."""
    try:
        major, minor = version("pip").split(".")[:2]
        return (int(major), int(minor)) >= (22, 3)
    except (PackageNotFoundError, ValueError):
        return False
