"""Log lines are written by a thread of their own: whoever reads stderr may stop reading, and a server must not
stop with it. Lines that find no room are dropped, counted, and reported once lines are read again."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from typing import Final

# What waits to be written at most; about 20,000 lines.
_ROOM_BYTES: Final = 4 << 20
_PIECE_BYTES: Final = 1 << 16
# What the last lines of a process get when nobody reads them.
_LAST_S: Final = 1.0
DROPPED: Final = "Log lines dropped because stderr was not read"


class LogWriter(logging.Handler):
    """Owns a duplicate of stderr's descriptor and a daemon thread that writes to it."""

    def __init__(self, descriptor: int, room: int = _ROOM_BYTES) -> None:
        super().__init__()
        self.dropped = 0  # lines, since the process started
        self._reported = 0
        self._descriptor = os.dup(descriptor)
        self._room = room
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._busy = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="edgeserve-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never blocks."""
        try:
            line = self._encoded(record)
        except Exception:  # noqa: BLE001 - a wrong format string ends nothing; printing might block
            line = f"{record.levelname} {record.name}: not a format: {record.msg!r}\n".encode()
        with self._changed:
            if self._size + len(line) > self._room:
                self.dropped += 1
                return
            self._lines.append(line)
            self._size += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Returns once everything is written, or the time limit has passed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._busy, _LAST_S)

    def _encoded(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                self._busy = True
                lines = self._take()
            written = self._write(b"".join(lines))
            with self._changed:
                if not written:
                    self.dropped += len(lines)
                lost = self.dropped - self._reported
            if written and lost and self._write(self._encoded(_report(lost))):
                self._reported += lost

    def _take(self) -> list[bytes]:
        lines, size = [], 0
        while self._lines and size < _PIECE_BYTES:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        self._size -= size
        return lines

    def _write(self, data: bytes) -> bool:
        """Blocks until everything is read. False if the other end is closed."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process has set it so
                select.select([], [self._descriptor], [], 1.0)
            except OSError:
                return False
        return True


def _report(lost: int) -> logging.LogRecord:
    text = "%d log lines were dropped: stderr was not read"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lost,), None)
    record.created = time.time()
    return record


def write_on_a_thread() -> None:
    """From now on a LogWriter writes the root logger's lines to stderr."""
    root = logging.getLogger()
    for handler in root.handlers:
        if type(handler) is not logging.StreamHandler or handler.stream is not sys.stderr:
            continue
        try:
            writer = LogWriter(handler.stream.fileno())
        except (OSError, ValueError):  # not a file: it does not block either
            continue
        writer.setFormatter(handler.formatter)
        writer.setLevel(handler.level)
        root.removeHandler(handler)
        root.addHandler(writer)
        _writers.append(writer)


def dropped_lines() -> int:
    """Log lines that this process has dropped."""
    return sum(writer.dropped for writer in _writers)


_writers: Final[list[LogWriter]] = []
