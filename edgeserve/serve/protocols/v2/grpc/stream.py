"""ModelStreamInfer: requests of one stream run side by side, their answers come in the requests' order."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final

import grpc

from edgeserve.errors import EdgeServeError
from edgeserve.serve.grpc.errors import text_of
from edgeserve.serve.protocols.grpc_inference import InferenceCall, Start
from edgeserve.serve.protocols.v2.grpc import codec

# Requests of one stream that may wait or run; the next is read when one is answered.
WINDOW: Final = 64
READER: Final = "edgeserve-grpc-reader"


class Stream:
    """One open stream. A thread of its own reads the requests; the caller's thread iterates the answers."""

    def __init__(
        self,
        start: Start,
        requests: Iterator[bytes],
        remaining_s: Callable[[], float | None],
        key: str | None = None,
        answered: Callable[[EdgeServeError | None, InferenceCall], None] = lambda error, call: None,
    ) -> None:
        """`key` is the caller's; `answered` is called with each request, and the error if it got one."""
        self._answered = answered
        self.key = key
        self._start = start
        self._requests = requests
        self._remaining_s = remaining_s
        self._started: queue.SimpleQueue[InferenceCall | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(WINDOW)
        self._lock = threading.Lock()
        self._answering: InferenceCall | None = None
        self._gone = False
        self.ended_by: EdgeServeError | None = None

    def answers(self) -> Iterator[bytes]:
        """Serialized ModelStreamInferResponses, until the client has ended, is gone, or `end`."""
        threading.Thread(target=self._read, name=READER, daemon=True).start()
        while (call := self._started.get()) is not None:
            self._answering = call
            if self._gone:
                call.left()
            call.wait()
            if self._gone:
                return
            failed: EdgeServeError | None = None
            try:
                answer = codec.in_stream(call.answer())
            except EdgeServeError as error:
                failed = error
                answer = codec.stream_error(text_of(error), call.id)
            self._answered(failed, call)
            yield answer
            self._room.release()

    def end(self, error: EdgeServeError) -> None:
        """Answer what has begun, then end, for this reason."""
        with self._lock:
            self.ended_by = error
            self._started.put(None)

    def left(self) -> None:
        """The client is gone: cancel what it asked for."""
        with self._lock:
            self._gone = True
        self._room.release(WINDOW)
        if self._answering is not None:
            self._answering.left()
        with contextlib.suppress(queue.Empty):
            while True:
                call = self._started.get_nowait()
                if call is not None:
                    call.left()
        self._started.put(None)

    def _read(self) -> None:
        # However the call ends, grpc raises here, with exceptions that share no base but Exception.
        with contextlib.suppress(grpc.RpcError, Exception):
            for message in self._requests:
                self._room.acquire()
                with self._lock:
                    if self._gone or self.ended_by is not None:
                        return
                    self._started.put(self._start(message, self._remaining_s()))
        self._started.put(None)
