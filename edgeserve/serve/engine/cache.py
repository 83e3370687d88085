"""Answers kept for requests that come again, within a bound of bytes. Off unless asked for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from edgeserve.serve.engine.request import Outcome
from edgeserve.tensors import Array, Tensors, digest_of

# What an entry costs beside its numbers, about.
_ENTRY_BYTES: Final = 1000


class ResponseCache:
    """The least recently asked for goes first. Lives on the event loop; shared by a server's models."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[bytes, tuple[Outcome, int]] = OrderedDict()

    def key(self, scope: str, inputs: Tensors, outputs: tuple[str, ...]) -> bytes:
        """What makes two requests the same; `scope` names the loaded model."""
        return digest_of(inputs, (scope, outputs))

    def get(self, key: bytes) -> Outcome | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: bytes, outcome: Outcome, outputs: tuple[str, ...]) -> None:
        """Keep an answer, unless it is larger than an eighth of the whole cache."""
        size = _ENTRY_BYTES + sum(_bytes(outcome.outputs[name]) for name in outputs)
        if size > self.limit_bytes // 8 or key in self._kept:
            return
        # Copies: an answer is a view on its whole batch.
        kept = {name: outcome.outputs[name].copy() for name in outputs}
        for array in kept.values():
            array.flags.writeable = False
        answer = Outcome(kept, outcome.candidate, outcome.batch, 0.0, 0.0)
        self._kept[key] = (answer, size)
        self.size_bytes += size
        while self.size_bytes > self.limit_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self.size_bytes -= freed


def _bytes(array: Array) -> int:
    if array.dtype != object:
        return int(array.nbytes)
    return sum(len(v) + 64 for v in array.reshape(-1))
