"""Which candidate of a chain serves, and the steps down and up from one to another."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain.candidates import Candidates
from edgeserve.chain.device_health import DeviceBoard, device_key
from edgeserve.chain.failures import in_words, reason_of
from edgeserve.chain.links import Fallback, Link, Promotion
from edgeserve.chain.opening import OpenedCandidate
from edgeserve.chain.options import ChainOptions
from edgeserve.errors import DeviceUnavailable, EdgeServeError

log = logging.getLogger(__name__)

# Over all chains, so that nothing of one is taken for another's.
_ERAS: Final = itertools.count()


class Upkeep(Protocol):
    """What keeps a chain in order on a thread of its own: it is asked, and nothing waits for it."""

    def wake(self) -> None:
        """Something has changed."""
        ...

    def check_soon(self) -> None:
        """Check what serves against its golden samples."""
        ...

    def retire(self, opened: OpenedCandidate) -> None:
        """Close a session that no longer serves, once its calls are over."""
        ...

    def let_go(self, link: Link) -> None:
        """A better candidate serves instead: close this one unless it is the standby."""
        ...


class Steps:
    """The candidates of a chain and the one that serves now. `fallbacks` and `promotions` are the steps so
    far. Steps may be taken from any thread."""

    keeper: Upkeep

    def __init__(self, bundle: Bundle, options: ChainOptions, board: DeviceBoard) -> None:
        """Nothing is opened yet. Raises UsageError when no candidate matches the options."""
        self.bundle = bundle
        self.options = options
        self.fallbacks: list[Fallback] = []
        self.promotions: list[Promotion] = []
        self.board = board
        # Held while another candidate is opened to take over; the candidates' lock inside of it.
        self.stepping = threading.RLock()
        self.candidates = Candidates(bundle, options, board)
        self.links = self.candidates.links
        # Another one after each failure: what a device answered before it failed is not relied on.
        self.era = next(_ERAS)
        self._listeners: list[Callable[[], None]] = []
        self._serving: OpenedCandidate
        self._since: float

    def start(self) -> None:
        """Open the first candidate that works. Raises as `Chain` does."""
        self._serving = self.candidates.open_first()
        self._require()
        self._since = time.time()
        for link in self.links[: self.candidates.link_of(self._serving).index]:
            attempt = link.attempt
            self.fallbacks.append(
                Fallback(
                    link.candidate,
                    self.candidate,
                    attempt.reason or "unavailable",
                    attempt.error or "",
                    attempt.hint,
                    self._since,
                )
            )

    def _require(self) -> None:
        if self.options.is_required(self.candidate):
            return
        failures = [link.attempt for link in self.links if self.options.is_required(link.candidate)]
        cause = "; ".join(f"{a.candidate.label}: {a.error}" for a in failures if a.error)
        raise DeviceUnavailable(
            f"'{self.options.require}' is required, but {self.candidate.label} would serve",
            cause=cause or f"the chain has no candidate on '{self.options.require}'",
            hint=next(
                (a.hint for a in failures if a.hint),
                "edgeserve doctor shows which devices open here",
            ),
        )

    @property
    def candidate(self) -> Candidate:
        """The candidate that serves now."""
        return self._serving.candidate

    @property
    def serving(self) -> OpenedCandidate:
        return self._serving

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from any thread, after each step down or up."""
        self._listeners.append(listener)

    def tell(self) -> None:
        for listener in self._listeners:
            listener()

    # Stepping down

    def step_down(self, failed: OpenedCandidate, error: EdgeServeError) -> None:
        """Switch to another candidate, unless `failed` no longer serves. If there is none, `failed` itself is
        opened again. Raises `error` when nothing opens."""
        link = self.candidates.link_of(failed)
        with self.stepping:
            if self._serving is failed and not self.candidates.closed:
                order = [*self.candidates.successors(link), link] if self.options.fallback else []
                if not self.mark_failed(link, failed, error):
                    # It had failed before, and nothing took over: what is not due again is not tried.
                    order = [x for x in order if x.opened is not None or x.backoff.is_due(_now())]
                target = self.candidates.open_one(order)
                if target is None:
                    raise error
                with self.candidates.lock:
                    self._serve(target)
                step = Fallback(
                    failed.candidate,
                    target.candidate,
                    reason_of(error),
                    str(error),
                    error.hint,
                    self._since,
                )
                self.fallbacks.append(step)
            else:
                self.mark_failed(link, failed, error)
                return
        log.error(
            "%s failed while serving, %s serves: %s",
            failed.candidate.label, target.candidate.label, in_words(error),
        )  # fmt: skip
        self.tell()

    def mark_failed(self, link: Link, failed: OpenedCandidate, error: EdgeServeError) -> bool:
        """Take a candidate out of service. False if it already was."""
        if not self.candidates.mark_failed(link, failed, error):
            return False
        self.era = next(_ERAS)
        self.keeper.retire(failed)
        if link.candidate.kind != "cpu":
            self.board.suspect(link.candidate.device, self)
        self.keeper.wake()
        return True

    def lost(self, opened: OpenedCandidate, error: EdgeServeError) -> None:
        """Step down from a candidate whose failure was found outside of a request."""
        if self.candidates.closed:
            return
        try:
            self.step_down(opened, error)
        except EdgeServeError:
            text = "%s failed while serving, nothing takes over: %s"
            log.error(text, opened.candidate.label, in_words(error))  # noqa: TRY400 - the reason is in its words
            self.tell()

    # Stepping up

    def promote(self, link: Link, opened: OpenedCandidate) -> None:
        """Switch to a candidate that was opened again, if it is before the serving one in the chain."""
        with self.stepping, self.candidates.lock:
            before = self.candidates.link_of(self._serving)
            better = link.index < before.index or before.opened is not self._serving
            if self.candidates.closed or not better or link.opened is not opened:
                return
            now = _now()
            away = now - (link.failed_at or now)
            source = self._serving.candidate
            self._serve(opened)
            self.promotions.append(Promotion(source, link.candidate, away, self._since))
        if before is not link:
            self.keeper.let_go(before)
        log.warning("%s serves again after %.1f s", link.candidate.label, away)
        self.tell()

    def _serve(self, opened: OpenedCandidate) -> None:
        """Under the lock."""
        link = self.candidates.link_of(opened)
        link.backoff.served(_now())
        link.failed_at = None
        self._serving = opened
        self._since = time.time()

    # From the board, on any thread

    def suspect(self, device: str) -> None:
        if self.candidate.device == device:
            self.keeper.check_soon()

    def found(self, key: str) -> None:
        for link in self.links:
            if device_key(link.candidate) == key:
                link.backoff.hurry(_now())
        self.keeper.wake()


def _now() -> float:
    return time.monotonic()
