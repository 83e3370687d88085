"""The records of a chain: its candidates' state, the steps it took, what serves."""

from __future__ import annotations

import threading
from typing import Literal

import msgspec

from edgeserve.bundle import Candidate
from edgeserve.chain.backoff import Backoff
from edgeserve.chain.opening import Attempt, OpenedCandidate, is_isolated
from edgeserve.chain.options import ChainOptions
from edgeserve.errors import EdgeServeError


class Fallback(msgspec.Struct, frozen=True):
    """One step down the chain, at load or at run time, for logs and metrics. `source` and `destination`
    are the same where a candidate had to be started again. `message` is the device's own, `at` in seconds
    since 1970."""

    source: Candidate
    destination: Candidate
    reason: str
    message: str = ""
    hint: str | None = None
    at: float = 0.0


class Promotion(msgspec.Struct, frozen=True):
    """One step up: a candidate that had failed serves again. `away_s` is how long it did not, `at` in
    seconds since 1970."""

    source: Candidate
    destination: Candidate
    away_s: float
    at: float = 0.0


class Replay(msgspec.Struct, frozen=True):
    """Requests that failed on one candidate and were answered by another; both by their labels. They are the
    same where it was started again, or tried twice. `reason` as in Fallback."""

    source: str
    destination: str
    reason: str


class ChainStatus(msgspec.Struct, frozen=True):
    """What serves now. `since` is in seconds since 1970; `ready` is whether a session is open, on the
    device that was required. Where the first candidate does not serve, `reason` says why and `retry_s`
    when it is tried again."""

    candidate: Candidate
    since: float
    ready: bool
    first: Candidate
    isolated: bool = False
    max_rows: int = 0
    reason: str | None = None
    hint: str | None = None
    retry_s: float | None = None


class LinkStatus(msgspec.Struct, frozen=True):
    """What one candidate is doing, and its last attempt. `waiting`: it failed, and is tried again in
    `retry_s` seconds. `out`: it cannot run here. `standby`: open. `closed`: opened when needed. `unused`:
    never opened, since fallback is off."""

    attempt: Attempt
    state: Literal["serving", "standby", "waiting", "out", "closed", "unused"]
    retry_s: float | None = None


class Link:
    """One candidate of the chain. Whoever opens it holds `opening`; `opened` is set under the chain's
    lock."""

    def __init__(self, index: int, candidate: Candidate, options: ChainOptions) -> None:
        self.index = index
        self.candidate = candidate
        self.isolated = is_isolated(candidate, options)
        self.attempt = Attempt(candidate, tried=False, isolated=self.isolated)
        self.opened: OpenedCandidate | None = None
        self.opening = threading.Lock()
        self.failed_at: float | None = None
        self.error: EdgeServeError | None = None
        self.backoff = Backoff(options.reopen_s, options.reopen_longest_s, options.stable_s)
