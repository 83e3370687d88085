"""The threads that calls run on, and how many calls they have."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc


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
    """The threads of the server: calls that infer wait on theirs for the engine, so that health and
    control need threads that they leave free. Owns them.

    grpc 1.12 and newer run a behaviour on the pool in its `experimental_thread_pool`; one that did not
    would run all on the first pool.
    """

    def __init__(self, infer_threads: int, max_streams: int) -> None:
        self.max_streams = max_streams
        self.infer = CallPool(infer_threads, "edgeserve-grpc")
        self.control = CallPool(4, "edgeserve-grpc-control")
        # A few more than streams, which tell the others that they are too many.
        self.streams = CallPool(max_streams + 4, "edgeserve-grpc-stream")

    def on(self, pool: CallPool, behaviour: Any) -> Callable[..., Any]:
        def placed(*args: Any) -> Any:
            return behaviour(*args)

        placed.experimental_thread_pool = pool  # type: ignore[attr-defined] # grpcio looks there
        return placed

    def on_stream(self, behaviour: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        """`behaviour` on the threads of streams, unless `max_streams` are open."""

        def limited(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            if self.streams.calls > self.max_streams:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams are open")
            yield from behaviour(requests, context)

        return self.on(self.streams, limited)

    def close(self) -> None:
        """End the threads; blocks until they have."""
        for pool in (self.infer, self.control, self.streams):
            pool.shutdown(wait=True)
