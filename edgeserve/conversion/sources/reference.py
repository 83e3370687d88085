"""The source's session, kept open where that costs little memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from edgeserve.conversion.memory import APART_BYTES, give_back
from edgeserve.runtimes import Placement, Session
from edgeserve.tensors import Tensors, TensorSpec


class Reference:
    """The source's session, open in a `with` block. It may be closed while others need the memory: the next
    call opens it again. `size_bytes` is the size of the source."""

    def __init__(
        self, session: Session, size_bytes: int, open_again: Callable[[int], Session]
    ) -> None:
        """`open_again(threads)` opens it with that many threads per call (0: the engine's choice)."""
        self._session: Session | None = session
        self._size_bytes = size_bytes
        self._open_again = open_again
        self._threads = 0
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.device: str = session.device
        self.concurrency: int = session.concurrency
        give_back(size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def limit_threads(self, threads: int) -> None:
        """From the next call on, use this many threads per call (0: the engine's choice)."""
        if threads != self._threads:
            self._threads = threads
            self.close()

    @property
    def is_large(self) -> bool:
        """Whether variants of the source are not all open at once."""
        return self._size_bytes > APART_BYTES

    def run(self, inputs: Tensors) -> Tensors:
        """Raises InferenceFailed, and what opening the source raises."""
        return self.wake().run(inputs)

    def placement(self) -> Placement:
        return self.wake().placement()

    def make_room(self) -> None:
        """Close it where it is large, until the next call."""
        if self.is_large:
            self.close()

    def wake(self) -> Session:
        """The open session. For a moment opening takes the weights twice: call this before others are open."""
        if self._session is None:
            self._session = self._open_again(self._threads)
            give_back(self._size_bytes)
        return self._session

    def close(self) -> None:
        """The next call opens it again."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
            del session
            give_back(self._size_bytes)
