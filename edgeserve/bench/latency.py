"""Single stream: one call after the other, a new one as soon as the last has answered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from edgeserve.bench.interleave import Timings, interleave
from edgeserve.bench.subjects import OpenSubject, Skipped, skipped_because
from edgeserve.errors import InferenceFailed
from edgeserve.tensors import Tensors


def single_stream(
    opened: Sequence[OpenSubject],
    requests: Sequence[Tensors],
    *,
    seconds: float,
    samples: int,
    patience: float = 4.0,
    progress: Callable[[float], None] | None = None,
) -> tuple[dict[str, Timings], list[Skipped]]:
    """Time every subject in turns, `seconds` and at least `samples` calls each (see `interleave`).

    One that fails while running is skipped, and the others are timed anew. Results by subject key.
    """
    alive, skipped = list(opened), list[Skipped]()
    while alive:
        try:
            timed = interleave(
                {o.subject.key: _caller(o, requests) for o in alive},
                max_seconds=seconds * len(alive),
                min_samples=samples,
                patience=patience,
                progress=progress,
            )
        except _Failed as failed:
            skipped.append(skipped_because(failed.opened.subject, "run", failed.error))
            alive.remove(failed.opened)
        else:
            return timed, skipped
    return {}, skipped


class _Failed(Exception):
    """Which of the interleaved subjects failed."""

    def __init__(self, opened: OpenSubject, error: InferenceFailed) -> None:
        super().__init__(str(error))
        self.opened = opened
        self.error = error


def _caller(opened: OpenSubject, requests: Sequence[Tensors]) -> Callable[[], object]:
    run, endless = opened.session.run, itertools.cycle(requests)

    def call() -> object:
        try:
            return run(next(endless))
        except InferenceFailed as error:
            raise _Failed(opened, error) from error

    return call
