"""Standard streams that may be closed, full, or a pipe that nobody reads any more.

What cannot be written to stdout is remembered and decides the exit code, whatever a library makes of
the exception. What cannot be written to stderr is lost: there is nowhere to tell it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# 128 + SIGPIPE, as a shell tells of `yes | head -1`.
CLOSED_PIPE = 141
NOT_WRITTEN = 3


class NotWritten(OSError):
    """What was printed could not be written to stdout."""


class StandardOutput(io.FileIO):
    """Descriptor 1. The first failed write raises NotWritten; those after it are lost."""

    def __init__(self) -> None:
        super().__init__(1, "w", closefd=False)
        self.failure: NotWritten | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        if self.failure is not None:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.failure = NotWritten(error.errno, error.strerror)
            raise self.failure from None

    def exit_code(self, code: int) -> int:
        """`code`, unless stdout could not be written completely, which is reported on stderr."""
        with contextlib.suppress(NotWritten):
            sys.stdout.flush()
        if self.failure is None:
            return code
        if self.failure.errno == errno.EPIPE:
            return CLOSED_PIPE
        closed = self.failure.errno == errno.EBADF
        why = "it is closed" if closed else self.failure.strerror or str(self.failure)
        print(f"error: the result cannot be written to stdout: {why}", file=sys.stderr)
        return NOT_WRITTEN


class _Remarks(io.FileIO):
    """Descriptor 2. What cannot be written is lost."""

    def __init__(self) -> None:
        super().__init__(2, "w", closefd=False)

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            written: Any = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def fill_gaps() -> None:
    """Open what is closed of descriptors 0 to 2, or else the next file or socket would get its number
    and what is printed with it. Reading ends at once, writing to 2 goes nowhere, writing to 1 fails."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # else closed again in what is started


def replace_missing() -> None:
    """Have `sys.stdin`, `sys.stdout` and `sys.stderr` be streams where they were closed at the start."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - open as long as the process lives


def guard() -> StandardOutput:
    """Put streams that behave as described in place of `sys.stdout` and `sys.stderr`."""
    fill_gaps()
    output = StandardOutput()
    sys.stdout = _text(output, sys.stdout)
    sys.stderr = _text(_Remarks(), sys.stderr)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    return output


def _text(raw: io.FileIO, replaced: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(replaced, "encoding", None) or "utf-8",
        errors="replace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )
