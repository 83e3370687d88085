"""Calls that wait for their message on a thread; if it does not come in time, the call ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

# A message comes with its call's head, or right after it.
_WAITS_S: Final = 5.0


class Arrivals:
    """The calls whose message has not come. `sweep` has to be called every second or so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[grpc.ServicerContext, float] = {}

    def with_message(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """A behaviour for any number of messages from one for a single message; it waits for the first for a
        limited time."""

        def waits(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._lock:
                self._waiting[context] = time.monotonic()
            try:
                message = next(messages, b"")
            finally:
                with self._lock:
                    del self._waiting[context]
            return behaviour(message, context)

        return waits

    def sweep(self) -> None:
        """End the calls that have waited too long."""
        oldest = time.monotonic() - _WAITS_S
        with self._lock:
            late = [context for context, since in self._waiting.items() if since < oldest]
        for context in late:
            context.cancel()
