"""What engines write to stderr past Python: caught while one opens a device, since the reason of a failure
often stands nowhere else."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import IO, Final

# One at a time: there is one stderr in a process.
_LOCK: Final = threading.RLock()
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m|\[[0-9;]*m")
# `INFO: [file.cc:12] text`, `E0000 00:00:17.25  123 file.cc:7] text`, onnxruntime's `2026-… [W:onnxruntime:…] text`.
_PREFIX: Final = re.compile(
    r"^(?:(?P<level>INFO|WARNING|Warning|ERROR|Error|VERBOSE): (?:\[[\w./]+:\d+\] )?"
    r"|(?P<glog>[IWEF])\d{4} [\d:.]+ +\d+ [\w./]+:\d+\] "
    r"|\d{4}-\d\d-\d\d [\d:.]+ \[(?P<ort>[VIWEF]):onnxruntime:[^\]]*\] )"
)
_TRACE: Final = re.compile(r"^(\s+at |=== |third_party/|└ ERROR: \[[\w./]+:\d+\]$)")
_LIMIT: Final = 600


class NativeLog:
    """What was written; complete once the block has ended."""

    def __init__(self) -> None:
        self.text = ""

    def complaints(self) -> str | None:
        """Its warnings and errors on one line, without times and source locations; None where it has
        none."""
        found = dict.fromkeys(_telling(line) for line in self.text.splitlines())
        text = "; ".join(part for part in found if part)
        return (text if len(text) <= _LIMIT else text[: _LIMIT - 1] + "…") or None


def _telling(line: str) -> str | None:
    line = _COLOUR.sub("", line).rstrip()
    if not line or _TRACE.match(line):
        return None
    prefix = _PREFIX.match(line)
    if prefix is None:
        return line.removeprefix("└ ").strip()
    level = prefix["level"] or prefix["glog"] or prefix["ort"]
    if level in ("INFO", "VERBOSE", "I", "V") or "before InitGoogle() is written" in line:
        return None
    return line[prefix.end() :].strip() or None


@contextlib.contextmanager
def caught_stderr(passes: Callable[[str], bool]) -> Iterator[NativeLog]:
    """Catch what this process writes to file descriptor 2 meanwhile.

    Lines for which `passes` holds are not the engine's: they are written to stderr afterwards, since
    other threads may have written them.
    """
    log = NativeLog()
    with _LOCK, contextlib.ExitStack() as stack:
        try:
            caught = stack.enter_context(_scratch_file())
            kept = os.dup(2)
        except OSError:  # no room for it, or stderr is closed and nobody reads it
            yield log
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(kept, 2)
            caught.seek(0)
            log.text = caught.read().decode("utf-8", errors="replace")
            rest = "".join(line for line in log.text.splitlines(keepends=True) if passes(line))
            if rest:
                os.write(kept, rest.encode())
            os.close(kept)


def _scratch_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # needs no writable folder
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()
