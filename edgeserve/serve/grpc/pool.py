"""The threads that calls run on, and the number of calls on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import grpc

# Streams that watch the health, which need no key.
_WATCHES: Final = 32


class CallPool(ThreadPoolExecutor):
    """Threads for calls of one kind, started when there is work; `calls` wait or run."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self.calls = 0
        self._count = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._count:
            self.calls += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[Any]) -> None:
        with self._count:
            self.calls -= 1


class Pools:
    """The threads of the server; owns them. Calls that infer wait on theirs for the engine, so health and control
    have others. Methods without a role have threads of their own: callers without a key cannot block the rest.

    grpc 1.12 and newer run a behaviour on the pool in its `experimental_thread_pool`; one that did not
    would run all on the first pool.
    """

    def __init__(
        self,
        infer_threads: int,
        max_streams: int,
        full: Callable[[grpc.ServicerContext], None] = lambda context: None,
    ) -> None:
        """`full` is called with each stream above the limit."""
        self.full = full
        self.max_streams = max_streams
        self.infer = CallPool(infer_threads, "edgeserve-grpc")
        self.control = CallPool(4, "edgeserve-grpc-control")
        self.refusals = CallPool(2, "edgeserve-grpc-refusal")
        self.probes = CallPool(16, "edgeserve-grpc-probe")
        self.watches = CallPool(_WATCHES + 4, "edgeserve-grpc-watch")
        # A few more than the limit, which refuse the streams above it.
        self.streams = CallPool(max_streams + 4, "edgeserve-grpc-stream")

    def on(self, pool: CallPool, behaviour: Any) -> Callable[..., Any]:
        def placed(*args: Any) -> Any:
            return behaviour(*args)

        placed.experimental_thread_pool = pool  # type: ignore[attr-defined] # grpcio looks there
        return placed

    def on_stream(self, behaviour: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        """`behaviour` on the threads of streams, unless `max_streams` are open."""
        said = f"too many open streams: at most {self.max_streams} (--grpc-streams)"
        return self._limited(self.streams, self.max_streams, behaviour, said)

    def on_watch(self, behaviour: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        """`behaviour` on the threads of those who watch the health."""
        said = f"too many open health watches: at most {_WATCHES}"
        return self._limited(self.watches, _WATCHES, behaviour, said)

    def _limited(
        self, pool: CallPool, most: int, behaviour: Callable[..., Iterator[Any]], said: str
    ) -> Callable[..., Any]:
        def limited(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            if pool.calls > most:
                self.full(context)
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said)
            yield from behaviour(requests, context)

        return self.on(pool, limited)

    def close(self) -> None:
        """End the threads; blocks until they have."""
        every = (self.infer, self.control, self.refusals, self.probes, self.watches, self.streams)
        for pool in every:
            pool.shutdown(wait=True)
