"""Calling pip in a process of its own: what it is at, and why it failed, in a few words."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edgeserve.progress import Say


class Finished(msgspec.Struct, frozen=True):
    """How a command ended, and the last lines it printed."""

    code: int
    lines: tuple[str, ...]

    @property
    def cause(self) -> str:
        """The lines that tell why it failed."""
        kept = [x.strip() for x in self.lines if x.strip() and not x.lstrip().startswith(_CHATTER)]
        return " | ".join(kept[-3:]) or f"exit code {self.code}"

    def hint(self, offline: str) -> str:
        """What to do about it; `offline` says how to do without a package index."""
        text = "\n".join(self.lines)
        if any(sign in text for sign in _UNREACHABLE):
            return f"no package index can be reached: connect, or {offline}"
        if "ensurepip" in text:
            return (
                "Python's venv module is incomplete here; on Debian: apt-get install python3-venv"
            )
        if "No matching distribution" in text or "Could not find a version" in text:
            return "the index or wheelhouse lacks a wheel for this Python version and platform"
        if "No space left" in text:
            return "free some space"
        return "run the same pip command by hand for details"


# Lines of pip that do not explain a failure.
_CHATTER: Final = ("WARNING: Location", "Looking in", "Collecting", "Using cached", "Downloading",
                   "Obtaining", "Processing", "[notice]", "WARNING: Retrying", "Requirement already",
                   "Installing", "Saved", "Preparing", "Getting", "Building")  # fmt: skip
_UNREACHABLE: Final = ("NewConnectionError", "Temporary failure in name", "Connection refused",
                       "ConnectTimeout", "ProxyError", "Name or service not known", "ConnectionError",
                       "Network is unreachable", "Read timed out")  # fmt: skip
OPTIONS: Final = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")


def run(
    command: Sequence[str], on_line: Callable[[str], None], *, pass_fds: Sequence[int] = ()
) -> Finished:
    """Run to the end, handing over lines as they come; the process dies when this call is left."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=pass_fds,
        start_new_session=True,  # pip has children of its own, which are ended with it
    )
    last: deque[str] = deque(maxlen=200)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            on_line(line)
        return Finished(process.wait(), tuple(last))
    finally:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


def ignore(line: str) -> None:
    """For commands whose output is of interest only when they fail."""


def telling(about: str, say: Say) -> Callable[[str], None]:
    """An `on_line` that says what pip is at, about what."""

    def on_line(line: str) -> None:
        words = line.split()
        if line.lstrip().startswith("Downloading") and len(words) > 1:
            file = words[1].rpartition("/")[2]
            say(f"{about}: downloading {' '.join([file, *words[2:]])}", None)
        elif line.startswith("Installing collected packages:"):
            say(f"{about}: installing {line.count(',') + 1} packages", None)

    return on_line
