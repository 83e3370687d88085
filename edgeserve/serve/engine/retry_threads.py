"""Threads for what may take long and must hold nobody up: requests that failed on the device that serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

# As many requests may be stuck on another device, and others still get there.
THREADS: Final = 4
_CLOSING_S: Final = 10.0


class Aside:
    """Owns up to four threads, started when there is work; more work waits. May be used from any thread."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._closed = False

    def do(self, work: Callable[[], None]) -> None:
        """Have it done soon; it must not raise. What comes after `close` is not done."""
        with self._lock:
            if self._closed:
                return
            self._busy += 1
            if len(self._threads) < min(self._busy, THREADS):
                # A daemon: what never returns must not keep the process from ending.
                thread = threading.Thread(
                    target=self._run, name=f"edgeserve-aside-{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            self._work.put(work)

    def close(self) -> None:
        """End the threads; one that does not return is left."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._work.put(None)
        end = time.monotonic() + _CLOSING_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._lock:
                self._busy -= 1
