"""The last 15 minutes of a server, one point each 5 s, made of what its recorder has counted: cheap, and lost when the
server ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.metrics.recorder import REQUEST_SECONDS
from edgeserve.serve.metrics.server_counts import RequestCounts
from edgeserve.serve.models.sources import Key
from edgeserve.serve.status.status import Observed

log = logging.getLogger(__name__)

STEP_S: Final = 5
SPAN_S: Final = 900
# Versions come and go; the history keeps no more of them than that.
_MOST: Final = 1_000


class HistoryPoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened in the interval that ends at `at` (seconds since 1970): answered requests and failed ones a second,
    percentiles of the time that answered requests waited and ran (none without such requests), and how many requests
    waited or ran at its end."""

    at: float
    rate: float = 0.0
    errors: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    queue: int = 0


class ModelHistory(msgspec.Struct, frozen=True):
    """The points of one version of a model. Intervals in which nothing happened to it have none; `answered` and
    `failed` count its requests within the history."""

    name: str
    version: str
    answered: int
    failed: int
    points: list[HistoryPoint]


class HistoryDocument(msgspec.Struct, frozen=True):
    """`total` has a point for each interval in which the server ran. `models` are those that were asked within
    `span_s`."""

    time: float
    step_s: int
    span_s: int
    total: list[HistoryPoint]
    models: list[ModelHistory]


class _Version:
    """The points of one version, and its counts in each interval."""

    def __init__(self) -> None:
        self.points: deque[HistoryPoint] = deque()
        self.counts: deque[tuple[float, int, int]] = deque()

    def forget(self, before: float) -> None:
        while self.points and self.points[0].at <= before:
            self.points.popleft()
        while self.counts and self.counts[0][0] <= before:
            self.counts.popleft()


class History:
    """Lives on the event loop. Each worker keeps that of the whole server, on the same clock."""

    def __init__(self, server: Observed) -> None:
        self._server = server
        self._before: Mapping[Key, RequestCounts] | None = None
        self._total: deque[HistoryPoint] = deque(maxlen=SPAN_S // STEP_S)
        self._versions: dict[Key, _Version] = {}

    async def keep(self) -> None:
        """Add a point each 5 s, until cancelled."""
        began = time.monotonic()
        while True:
            try:
                requests = (await self._server.counts()).requests()
            except EnvironmentProblem as error:
                log.debug("no point for the history: %s", error)
            else:
                ended = time.monotonic()
                self.add(time.time(), ended - began, requests)
                began = ended
            await asyncio.sleep(_until_next(time.time()))

    def add(self, at: float, seconds: float, requests: Mapping[Key, RequestCounts]) -> None:
        """Add a point for the `seconds` up to `at`, from all that was counted since the server started. The first call
        sets what the next one is compared with."""
        before, self._before = self._before, requests
        if before is None or seconds <= 0:
            return
        spent = {
            key: _spent(counts, before.get(key, RequestCounts()))
            for key, counts in requests.items()
        }
        for key, counts in spent.items():
            failed = sum(counts.failed.values())
            if counts.answered or failed or counts.pending:
                version = self._versions.setdefault(key, _Version())
                version.points.append(_point(at, seconds, [counts]))
                version.counts.append((at, counts.answered, failed))
        self._total.append(_point(at, seconds, spent.values()))
        self._forget(at - SPAN_S)

    def _forget(self, before: float) -> None:
        while self._total and self._total[0].at <= before:
            self._total.popleft()
        for key, version in list(self._versions.items()):
            version.forget(before)
            if not version.points:
                del self._versions[key]
        while len(self._versions) > _MOST:
            del self._versions[next(iter(self._versions))]

    def document(self, since: float = 0.0) -> HistoryDocument:
        """The points after `since`; the counts of models are those of the whole history."""
        return HistoryDocument(
            time.time(),
            STEP_S,
            SPAN_S,
            [point for point in self._total if point.at > since],
            [
                ModelHistory(
                    *key,
                    answered=sum(answered for _, answered, _ in version.counts),
                    failed=sum(failed for _, _, failed in version.counts),
                    points=[point for point in version.points if point.at > since],
                )
                for key, version in sorted(self._versions.items())
            ],
        )


def _until_next(now: float) -> float:
    """Seconds to the next multiple of the step, but not to one that is as good as reached."""
    left = STEP_S - now % STEP_S
    return left if left > STEP_S / 10 else left + STEP_S


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value below which a share of all values lies, by the counts between bounds; None without values. Within
    two bounds, values are taken to be spread evenly. Values above the last bound count as that."""
    left = share * sum(counts)
    if left <= 0:
        return None
    low = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and left <= count:
            return low + (bound - low) * left / count
        left -= count
        low = bound
    return low


def _spent(now: RequestCounts, before: RequestCounts) -> RequestCounts:
    """What was counted between two readings. Counts never decrease but where a server of several processes lost some."""
    times = before.times or (0,) * len(now.times)
    return RequestCounts(
        max(0, now.answered - before.answered),
        {reason: max(0, n - before.failed.get(reason, 0)) for reason, n in now.failed.items()},
        now.pending,
        tuple(max(0, n - b) for n, b in zip(now.times, times, strict=True)),
    )


def _point(at: float, seconds: float, spent: Iterable[RequestCounts]) -> HistoryPoint:
    every = list(spent)
    times = [sum(column) for column in zip(*(c.times for c in every if c.times), strict=True)]
    p50, p99 = (quantile(REQUEST_SECONDS, times, share) for share in (0.5, 0.99))
    return HistoryPoint(
        round(at, 3),
        _rounded(sum(c.answered for c in every) / seconds),
        _rounded(sum(sum(c.failed.values()) for c in every) / seconds),
        None if p50 is None else _rounded(1000 * p50),
        None if p99 is None else _rounded(1000 * p99),
        sum(c.pending for c in every),
    )


def _rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")
