"""What engines write to stdout and stderr past Python: caught while one opens a device, since the reason of a failure
often stands nowhere else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import IO, Final

# One at a time: a process has these once.
_LOCK: Final = threading.RLock()
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m|\[[0-9;]*m")
# `INFO: [file.cc:12] text`, `E0000 00:00:17.25  123 file.cc:7] text`, onnxruntime's `2026-… [W:onnxruntime:…] text`.
_PREFIX: Final = re.compile(
    r"^(?:(?P<level>INFO|WARNING|Warning|ERROR|Error|VERBOSE): (?:\[[\w./]+:\d+\] )?"
    r"|(?P<glog>[IWEF])\d{4} [\d:.]+ +\d+ [\w./]+:\d+\] "
    r"|\d{4}-\d\d-\d\d [\d:.]+ \[(?P<ort>[VIWEF]):onnxruntime:[^\]]*\] )"
)
_CODE: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SIGNATURE: Final = re.compile(r"^/\S+\.\w+:\d+ [^()]*\(.*?\) ")
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


def environment_key() -> str:
    """What of the environment decides which drivers engines find: results of probes hold for one."""
    names = sorted(n for n in os.environ if n.startswith(("VK_", "ORT_", "CUDA_", "LD_LIBRARY")))
    return "\0".join(f"{name}={os.environ[name]}" for name in names)


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
    return plain_words(line[prefix.end() :]) or None


def plain_words(text: str) -> str:
    """onnxruntime's message without its stack: codes, source files and signatures."""
    last = _CODE.split(" ".join(text.split()))[-1]
    if last.startswith("/") and " was false. " in last:
        last = last.rpartition(" was false. ")[2]
    return _SIGNATURE.sub("", last)


@contextlib.contextmanager
def caught_output(passes: Callable[[str], bool]) -> Iterator[NativeLog]:
    """Catch what this process writes to file descriptors 1 and 2 meanwhile; the log holds the second's.

    Lines for which `passes` holds are not the engine's: they are written afterwards where they were
    going, since other threads may have written them.
    """
    log = NativeLog()
    with _LOCK, contextlib.ExitStack() as stack:
        _flush()
        streams = []
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # closed: nobody reads it; or no room for a file
                streams.append(_Stream(descriptor, stack))
        try:
            yield log
        finally:
            _flush()
            for stream in streams:
                text = stream.give_back()
                if stream.descriptor == 2:
                    log.text = text
                lines = text.splitlines(keepends=True)
                stream.write("".join(line for line in lines if line.strip() and passes(line)))


class _Stream:
    """A file descriptor that leads into a scratch file until it is given back."""

    def __init__(self, descriptor: int, stack: contextlib.ExitStack) -> None:
        self.descriptor = descriptor
        self._kept = os.dup(descriptor)
        stack.callback(os.close, self._kept)
        self._caught = stack.enter_context(_scratch_file())
        os.dup2(self._caught.fileno(), descriptor)

    def give_back(self) -> str:
        os.dup2(self._kept, self.descriptor)
        self._caught.seek(0)
        return self._caught.read().decode("utf-8", errors="replace")

    def write(self, text: str) -> None:
        if text:
            os.write(self._kept, text.encode())


def _flush() -> None:
    """Python's buffers and C's: what stands in them belongs to before, or to the engine."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).fflush(None)


def _scratch_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # needs no writable folder
        return os.fdopen(os.memfd_create("output"), "w+b")
    return tempfile.TemporaryFile()
