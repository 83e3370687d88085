"""One isolated process and the thread that watches it: start, heartbeat, memory cap, last output, end.

The process ends with its owner: its channels close, and on Linux the kernel kills it as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgeserve import startup
from edgeserve.errors import DeviceLost, DeviceUnavailable
from edgeserve.isolation.messages import Close, Ping, encode

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1.0
_SILENCE_S: Final = 10.0
_OUTPUT_BYTES: Final = 8192
_CLOSING_S: Final = 3.0
_TICK_S: Final = 0.25


class ProcessLimits(msgspec.Struct, frozen=True):
    """When an isolated process is ended. `open_s` limits opening and each golden run; `call_s` is the
    minimum time limit of later calls; `memory_bytes` limits resident memory (0: no limit)."""

    open_s: float = 180.0
    call_s: float = 2.0
    memory_bytes: int = 0


class _End(msgspec.Struct, frozen=True):
    """Why a process was lost. Kept as data: a kept exception would keep everything its traceback refers to."""

    reason: Literal["crash", "hang", "memory"]
    message: str
    words: str | None

    def error(self) -> DeviceLost:
        return DeviceLost(
            self.message, cause=self.words, hint=_HINTS[self.reason], reason=self.reason
        )


class IsolatedProcess:
    """Owns one process and the thread that watches it. `on_end` is called once, from that thread, when the
    process ends, or is ended, other than by `close`. `cancelled` returns True once nobody waits for it."""

    def __init__(
        self, label: str, slots: int, limits: ProcessLimits, cancelled: Callable[[], bool]
    ) -> None:
        self.label = label
        self.limits = limits
        self.cancelled = cancelled
        self.busy: Callable[[], bool] = _never
        self.on_end: Callable[[DeviceLost], None] = _ignore
        self._words = bytearray()
        self._end: _End | None = None
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._closing = False
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(slots)]
        self.channels = [ours for ours, _ in pairs]
        theirs = [control, *(other for _, other in pairs)]
        try:
            self._popen = _spawner().submit(_spawn, [s.fileno() for s in theirs], limits).result()
        except OSError as error:
            for channel in (self.control, *self.channels):
                channel.close()
            raise DeviceUnavailable(
                f"cannot start a process for {label}", cause=str(error)
            ) from None
        finally:
            for channel in theirs:
                channel.close()
        assert self._popen.stdout is not None
        self._output = self._popen.stdout
        os.set_blocking(self._output.fileno(), False)
        self._warden: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def lost(self) -> DeviceLost | None:
        return None if self._end is None else self._end.error()

    def watch(self) -> None:
        """Start the thread that watches, once the session is open."""
        self._warden = threading.Thread(
            target=self._watch, name=f"edgeserve-warden-{self.pid}", daemon=True
        )
        self._warden.start()

    def end(self, reason: Literal["crash", "hang", "memory"], what: str) -> DeviceLost:
        """Kill the process if it is alive, and return why it was lost; the first reason is kept."""
        with self._lock:
            if self._end is None:
                died = reason == "crash"
                code = self._wait(0.5) if died else None
                if code is None:
                    self._popen.kill()
                    self._wait(2.0)
                self._read_output()
                message = f"the process of {self.label} {_ending(code) if died else what}"
                self._end = _End(reason, message, self._last_words())
            return self._end.error()

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:  # stuck in the kernel: the warden reaps it later
            return None

    def close(self) -> None:
        """Ask it to close its session and end; kill it if it does not. Returns when it is gone. Idempotent."""
        with self._lock:
            first, self._closing = not self._closing, True
            if first and self._end is None:
                with contextlib.suppress(OSError):
                    self.control.send(encode(Close()))
        if first:
            # A session inside a driver may never close: then the process is killed.
            if self._wait(_CLOSING_S if self._end is None else 0.0) is None:
                self._popen.kill()
                self._wait(2.0)
            for channel in self.channels:
                channel.close()
            if self._warden is not None and self._warden is not threading.current_thread():
                self._warden.join(_CLOSING_S)
            self.control.close()
            self._output.close()
            self.busy, self.on_end = _never, _ignore  # both refer to our owner

    def receive_opening(self, limit_s: float) -> bytes:
        """The first message on the control channel; empty when the process ended. Raises TimeoutError."""
        deadline = time.monotonic() + limit_s
        poll = self._poll()
        while time.monotonic() < deadline and not self.cancelled():
            events = dict(poll.poll(1000.0 * _TICK_S))
            if self.control.fileno() in events:
                return self._received()
            if self._output.fileno() in events and not self._read_output():
                poll.unregister(self._output)
        raise TimeoutError

    # The warden's thread.

    def _watch(self) -> None:
        poll = self._poll()
        asked = answered = 0
        heard = tick = time.monotonic()
        while not self._closing:
            pause = max(0.0, tick - time.monotonic())
            events = dict(poll.poll(1000.0 * pause))
            if self._output.fileno() in events and not self._read_output():
                poll.unregister(self._output)
            if self.control.fileno() in events:
                if not self._received():
                    break
                answered, heard = asked, time.monotonic()
            if time.monotonic() < tick:
                continue
            tick = time.monotonic() + HEARTBEAT_S
            if self.busy():
                heard = time.monotonic()  # a call has its own limit
            elif answered < asked and time.monotonic() - heard > _SILENCE_S:
                self.end("hang", f"has not answered for {_SILENCE_S:g} s")
                break
            if (size := _resident_bytes(self.pid)) > self.limits.memory_bytes > 0:
                allowed = self.limits.memory_bytes / 1e6
                self.end(
                    "memory", f"used {size / 1e6:.0f} MB of memory; the limit is {allowed:.0f} MB"
                )
                break
            asked += 1
            with contextlib.suppress(OSError):
                self.control.send(encode(Ping(asked)), socket.MSG_DONTWAIT)
        if not self._closing:
            self.on_end(self.end("crash", ""))
        while self._popen.poll() is None and not self._closing:
            time.sleep(HEARTBEAT_S)

    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self._output, select.POLLIN)
        return poll

    def _received(self) -> bytes:
        try:
            return self.control.recv(1 << 16)
        except OSError:
            return b""

    def _read_output(self) -> bool:
        """Keep the end of what the process wrote. False when it has closed its output."""
        with self._reading, contextlib.suppress(OSError, ValueError):
            while data := os.read(self._output.fileno(), 65536):
                log.debug("%s: %s", self.label, data.decode(errors="replace").rstrip())
                self._words += data
                del self._words[:-_OUTPUT_BYTES]
            return False
        return not self._output.closed

    def _last_words(self) -> str | None:
        lines = [x.strip() for x in self._words.decode(errors="replace").splitlines() if x.strip()]
        return "; ".join(lines[-3:]) or None


_HINTS: Final = {
    "crash": "it will be restarted after a pause; if this repeats, update the device's driver",
    "hang": "it will be restarted after a pause; raise --watchdog or --open-timeout to allow more time",
    "memory": "raise --isolated-memory, or use a smaller variant or batch",
}


def _never() -> bool:
    return False


def _ignore(error: DeviceLost) -> None:
    pass


def _ending(code: int | None) -> str:
    if code is None:
        return "closed its channels and was killed"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"died of {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _spawn(descriptors: list[int], limits: ProcessLimits) -> subprocess.Popen[bytes]:
    control, *slots = descriptors
    # -P: a file of the current folder must not stand in for a module.
    command = [sys.executable, "-P", "-m", "edgeserve.isolation", str(os.getpid()), str(control)]
    command += [",".join(map(str, slots)), str(limits.memory_bytes)]
    with startup.hangups_held():  # permanently: SIGHUP is for the owner
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # drivers complain on either
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
        )


@cache
def _spawner() -> ThreadPoolExecutor:
    """The one thread that starts all isolated processes; it lives as long as this process, since Linux ends
    a child with the *thread* that started it."""
    return ThreadPoolExecutor(1, thread_name_prefix="edgeserve-spawner")


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
