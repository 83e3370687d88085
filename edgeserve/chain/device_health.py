"""What is known of devices in this process, so that one model's chain learns from another's."""

from __future__ import annotations

import threading
import weakref
from typing import Final, Protocol

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.errors import EdgeServeError


class Watcher(Protocol):
    """A chain. Both are called from any thread, and must not wait."""

    def suspect(self, device: str) -> None:
        """Another model lost this device: look whether it still answers."""
        ...

    def found(self, key: str) -> None:
        """A device that did not open, opened."""
        ...


class _Lost(msgspec.Struct, frozen=True):
    error: EdgeServeError
    until: float


class DeviceBoard:
    """Which devices did not open, and until when not to try again (time.monotonic seconds). Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: dict[str, _Lost] = {}
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()

    def watch(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers.add(watcher)

    def lost(self, key: str, error: EdgeServeError, until: float) -> None:
        with self._lock:
            self._lost[key] = _Lost(error, until)

    def known_lost(self, key: str, now: float) -> tuple[EdgeServeError, float] | None:
        """The error with which a device did not open lately, and until when that counts."""
        with self._lock:
            entry = self._lost.get(key)
            return (entry.error, entry.until) if entry is not None and now < entry.until else None

    def opened(self, key: str) -> None:
        with self._lock:
            was_lost = self._lost.pop(key, None) is not None
            watchers = list(self._watchers) if was_lost else []
        for watcher in watchers:
            watcher.found(key)

    def suspect(self, device: str, source: Watcher) -> None:
        with self._lock:
            watchers = [w for w in self._watchers if w is not source]
        for watcher in watchers:
            watcher.suspect(device)

    def forget(self) -> None:
        with self._lock:
            self._lost.clear()


BOARD: Final = DeviceBoard()


def device_key(candidate: Candidate) -> str:
    """What must open for this candidate: an engine's device. Another engine may open it where one fails."""
    provider = candidate.options.get("provider", "")
    return f"{candidate.runtime}/{candidate.device}/{provider}"
