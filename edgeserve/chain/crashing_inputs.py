"""Inputs that end a device's process: they are recognised, and not run there again and again."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from edgeserve.tensors import Tensors, digest_of

# One end of a process may have any cause; two with the same inputs are not a coincidence.
_STRIKES: Final = 2
# Drivers are repaired, and inputs may have been unlucky twice.
_FORGET_S: Final = 3600.0
_MOST: Final = 256
_SAMPLE: Final = 16


class _Record:
    """Which processes of which candidates ended while they ran certain inputs."""

    def __init__(self) -> None:
        self.processes: dict[int, set[int]] = {}
        self.last = 0.0

    def lethal(self, link: int) -> bool:
        """There; or everywhere, where two candidates' processes ended."""
        return len(self.processes) >= _STRIKES or len(self.processes.get(link, ())) >= _STRIKES


class LethalInputs:
    """Inputs in whose calls processes of a chain's candidates ended, with no answer in between.

    A candidate is named by its place in the chain. Thread-safe. Up to 256 inputs are remembered by their
    digest, for an hour.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._glimpses: set[int] = set()
        self.any = False  # read before each call, hence without the lock

    def struck(self, link: int, process: int, parts: Sequence[Tensors]) -> Mapping[int, int]:
        """A process ended while it ran these requests together; no other has this number.

        If one of them is known to be lethal now: how many processes of each candidate it has ended.
        """
        found: dict[int, int] = {}
        with self._lock:
            for inputs in parts:
                digest = digest_of(inputs)
                record = self._records.setdefault(digest, _Record())
                self._records.move_to_end(digest)
                record.processes.setdefault(link, set()).add(process)
                record.last = self._clock()
                if record.lethal(link):
                    found = {n: len(ended) for n, ended in record.processes.items()}
                self._glimpses.add(_glimpse(inputs))
            while len(self._records) > _MOST:
                self._records.popitem(last=False)
            self.any = True
        return found

    def answered(self, link: int, parts: Sequence[Tensors]) -> None:
        """The candidate has answered these: whatever ended its process, they did not."""
        for inputs in parts:
            if _glimpse(inputs) in self._glimpses:
                with self._lock:
                    record = self._records.get(digest := digest_of(inputs))
                    if record is not None:
                        record.processes.pop(link, set())
                        if not record.processes:
                            del self._records[digest]
                    self._forget()

    def are(self, link: int, inputs: Tensors) -> bool:
        """Whether the inputs of one request must not be run there."""
        if _glimpse(inputs) not in self._glimpses:
            return False
        with self._lock:
            self._forget()
            record = self._records.get(digest_of(inputs))
            return record is not None and record.lethal(link)

    def _forget(self) -> None:
        """Under the lock: what is old."""
        oldest = self._clock() - _FORGET_S
        while self._records and next(iter(self._records.values())).last < oldest:
            self._records.popitem(last=False)
        if not self._records:
            self._glimpses.clear()
            self.any = False


def _glimpse(inputs: Tensors) -> int:
    """Of a few elements: it tells most requests apart for a microsecond or two."""
    seen: list[object] = []
    for name, array in inputs.items():
        flat = array.reshape(-1)
        few = flat[:: max(1, flat.size // _SAMPLE)]
        seen.append((name, array.shape, array.dtype.str))
        seen.append(tuple(map(str, few)) if array.dtype == object else few.tobytes())
    return hash(tuple(seen))
