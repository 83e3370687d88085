"""Tool environments: virtual environments under the user's cache for converters whose packages clash.

Made on first use from pinned requirements, reused afterwards, removable. A marker written last says that
one is complete; a lock keeps two processes from making the same one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.errors import ToolEnvironmentError, UsageError, nearest

if os.name == "posix":
    import fcntl

_MARKER: Final = "edgeserve-complete.json"
Say = Callable[[str, float | None], None]


class EnvironmentRecord(msgspec.Struct, frozen=True):
    """An environment on disk; `complete` is False while it is being made, or after that failed."""

    name: str
    path: str
    requires: tuple[str, ...]
    size_bytes: int
    complete: bool


def cache_root() -> Path:
    """`EDGESERVE_CACHE_DIR`, else the platform's cache folder."""
    explicit = os.environ.get("EDGESERVE_CACHE_DIR")
    if explicit:
        return Path(explicit)
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
        version = f"{sys.implementation.cache_tag}-{sys.platform}"
        content = json.dumps([version, requires, pip_arguments])
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
        if self.complete:
            return self.python
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock"), say, self.name):
                if not self.complete:  # another process may have made it meanwhile
                    self._create(say)
        except OSError as error:
            raise ToolEnvironmentError(
                f"the tool environment {self.name} cannot be written",
                cause=str(error),
                hint="free some space, or put it elsewhere with EDGESERVE_CACHE_DIR",
            ) from error
        return self.python

    def _create(self, say: Say) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        say(f"creating tool environment {self.name}", None)
        self._run([sys.executable, "-m", "venv", str(self.path)])
        say(f"installing {', '.join(self.requires)} (first use only)", None)
        wheelhouse = os.environ.get("EDGESERVE_WHEELHOUSE")
        offline = ["--no-index", "--find-links", wheelhouse] if wheelhouse else []
        self._run(
            [
                *(str(self.python), "-m", "pip", "install", "--disable-pip-version-check"),
                *("--quiet", "--no-input"),
                *self.pip_arguments,
                *offline,
                *self.requires,
            ]
        )
        (self.path / _MARKER).write_text(json.dumps({"requires": self.requires}), "utf-8")

    def _run(self, command: list[str]) -> None:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if run.returncode == 0:
            return
        text = run.stderr.strip() or run.stdout.strip()
        lines = [
            x for x in text.splitlines() if x.strip() and not x.startswith("WARNING: Location")
        ]
        shutil.rmtree(self.path, ignore_errors=True)
        raise ToolEnvironmentError(
            f"the tool environment {self.name} cannot be created",
            cause=" | ".join(lines[-3:]) or f"exit code {run.returncode}",
            hint=_hint(text),
        )


def _hint(text: str) -> str:
    unreachable = ("NewConnectionError", "Temporary failure in name", "Connection refused",
                   "ConnectTimeout", "ProxyError", "Name or service not known")  # fmt: skip
    if any(sign in text for sign in unreachable):
        return (
            "no package index can be reached: connect, or fill a folder with `pip download` elsewhere "
            "and name it in EDGESERVE_WHEELHOUSE"
        )
    if "No matching distribution" in text or "Could not find a version" in text:
        return "the index or wheelhouse lacks a wheel for this Python version and platform"
    if "No space left" in text:
        return "free some space, or put environments elsewhere with EDGESERVE_CACHE_DIR"
    return "the same pip command by hand shows more"


def list_environments() -> list[EnvironmentRecord]:
    """All environments on disk, by name."""
    records = []
    for path in sorted(_folder().glob("*-*")):
        if not path.is_dir():
            continue
        marker = path / _MARKER
        requires: tuple[str, ...] = ()
        if marker.is_file():
            requires = tuple(json.loads(marker.read_text("utf-8"))["requires"])
        size = sum(f.lstat().st_size for f in path.rglob("*") if not f.is_dir())
        name = path.name.rpartition("-")[0]
        records.append(EnvironmentRecord(name, str(path), requires, size, marker.is_file()))
    return records


def remove_environments(name: str) -> list[EnvironmentRecord]:
    """Remove every environment called `name`; what was removed. Raises UsageError for none."""
    known = list_environments()
    chosen = [r for r in known if r.name == name]
    if not chosen:
        guess = nearest(name, [r.name for r in known])
        raise UsageError(
            f"there is no tool environment '{name}'",
            hint=f"did you mean '{guess}'?" if guess else "edgeserve env list shows them",
        )
    for record in chosen:
        shutil.rmtree(record.path)
        Path(record.path).with_suffix(".lock").unlink(missing_ok=True)
    return chosen


def _folder() -> Path:
    return cache_root() / "envs"


@contextlib.contextmanager
def _locked(path: Path, say: Say, name: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if os.name == "posix":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say(f"waiting for another process that makes {name}", None)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
