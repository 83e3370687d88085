"""The candidates of a chain: opened on demand, remembered when they fail."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from edgeserve.bundle import Batching, Bundle, Candidate
from edgeserve.chain.device_health import DeviceBoard, device_key
from edgeserve.chain.failures import in_words, is_permanent, reason_of
from edgeserve.chain.links import Link
from edgeserve.chain.opening import Attempt, OpenedCandidate, open_proven, with_stand_ins
from edgeserve.chain.options import ChainOptions
from edgeserve.chain.planning import matching
from edgeserve.errors import (
    BundleError,
    CheckFailed,
    DeviceLost,
    DeviceUnavailable,
    EdgeServeError,
    UsageError,
)

log = logging.getLogger(__name__)


class Candidates:
    """A chain's links in order. Owns what they have opened; which of them serves is the chain's business.

    `lock` is held for moments only: while `opened` of a link changes.
    """

    def __init__(self, bundle: Bundle, options: ChainOptions, board: DeviceBoard) -> None:
        """Nothing is opened yet. Raises UsageError when no candidate matches the options."""
        self.bundle = bundle
        self.options = options
        self.board = board
        self.lock = threading.Lock()
        self.closed = False
        # What is known of the candidates' batches, by their labels: it outlives their sessions.
        self.batching: dict[str, Batching] = {}
        self._unproven: set[str] = set()  # those proven by answers of a device that was wrong
        self._on_loss: Callable[[OpenedCandidate, DeviceLost], None] | None = None
        self.links = [Link(i, c, options) for i, c in enumerate(self._selected())]
        self.fault_state = (
            tempfile.TemporaryDirectory(prefix="edgeserve-faults-") if options.inject else None
        )

    def _selected(self) -> list[Candidate]:
        known = with_stand_ins(self.bundle.manifest.chain, self.options.inject)
        chosen = matching(known, self.options)
        if not chosen:
            labels = ", ".join(c.label for c in known)
            raise UsageError("no candidate of the chain matches", hint=f"the chain is {labels}")
        return chosen

    def link_of(self, opened: OpenedCandidate) -> Link:
        return next(link for link in self.links if link.candidate is opened.candidate)

    def report_losses(self, tell: Callable[[OpenedCandidate, DeviceLost], None]) -> None:
        """Have `tell` called, on any thread, when the process of an open candidate ends by itself."""
        self._on_loss = tell
        for link in self.links:
            if link.opened is not None:
                self._watch(link.opened)

    def _watch(self, opened: OpenedCandidate) -> None:
        tell = self._on_loss
        if opened.isolated is not None and tell is not None:
            opened.isolated.when_lost(lambda error: tell(opened, error))

    # Opening

    def open_first(self) -> OpenedCandidate:
        """The first candidate that works. Devices known to be lost are tried only if nothing else works."""
        skipped: list[Link] = []
        found: OpenedCandidate | None = None
        for link in self.links:
            known = self.board.known_lost(device_key(link.candidate), _now())
            if known is not None and self.options.fallback and not self.options.require:
                self._record(link, known[0])
                link.failed_at = _now()
                link.backoff.failed_at_start(_now())
                skipped.append(link)
                continue
            found = self._try(link, at_start=True)
            if found is not None:
                break
            if not self.options.fallback:
                assert link.error is not None
                raise link.error
        for link in skipped if found is None else ():
            found = found or self._try(link, at_start=True)
        if found is None:
            raise self._nothing_works()
        self.link_of(found).backoff.served(_now())
        return found

    def successors(self, failed: Link) -> list[Link]:
        """What may take over from `failed`, best first: candidates behind it in the chain, then those before it;
        recently failed ones last."""
        order = [*self.links[failed.index + 1 :], *self.links[: failed.index]]
        order.sort(key=lambda link: link.opened is None and link.backoff.due is not None)
        return order

    def open_one(self, order: Sequence[Link]) -> OpenedCandidate | None:
        """The first of them that is open or opens."""
        for link in order:
            opened = link.opened or self._try(link)
            if opened is not None:
                return opened
        return None

    def _try(self, link: Link, *, at_start: bool = False) -> OpenedCandidate | None:
        try:
            return self.open(link)
        except BundleError as error:
            if at_start:
                raise  # a damaged bundle must not start on another candidate
            log.warning("%s cannot take over: %s", link.candidate.label, error)
        except EdgeServeError as error:
            self.note_failure(link, error, at_start=at_start)
            log.warning("%s does not serve: %s", link.candidate.label, in_words(error))
        return None

    def open(self, link: Link) -> OpenedCandidate:
        """Open a candidate unless it is open. Raises what opening it raises."""
        with link.opening:
            if link.opened is not None:
                return link.opened
            label = link.candidate.label
            known = None if label in self._unproven else self.batching.get(label)
            state = self.fault_state.name if self.fault_state is not None else ""
            opened = open_proven(
                self.bundle,
                link.candidate,
                self.options,
                fault_state=state,
                cancelled=lambda: self.closed,
                batching=known,
            )
            if known is None:
                self.batching[label] = opened.batching
                self._unproven.discard(label)
            self.board.opened(device_key(link.candidate))
            with self.lock:
                if self.closed:
                    opened.close()
                    raise DeviceUnavailable("the chain was closed")
                link.opened = opened
                link.backoff.due = None
                link.attempt = Attempt(
                    link.candidate,
                    tried=True,
                    load_ms=opened.load_ms,
                    golden_error=opened.golden_error,
                    isolated=link.isolated,
                )
        self._watch(opened)
        return opened

    def note_failure(self, link: Link, error: EdgeServeError, *, at_start: bool) -> None:
        """A candidate did not open."""
        if self.closed:
            return  # the chain was closed meanwhile: that is not the device's failure
        now = _now()
        self._record(link, error)
        link.error = error.with_traceback(None)
        link.failed_at = link.failed_at or now
        if is_permanent(error):
            link.backoff.give_up()
            return
        due = link.backoff.failed_at_start(now) if at_start else link.backoff.failed(now)
        if isinstance(error, DeviceUnavailable) and link.candidate.kind != "cpu":
            self.board.lost(device_key(link.candidate), error, due)

    # Failing

    def mark_failed(self, link: Link, failed: OpenedCandidate, error: EdgeServeError) -> bool:
        """Take a candidate out of service. False if it already was."""
        with self.lock:
            if link.opened is not failed:
                return False
            link.opened = None
        failed.failure = error.with_traceback(None)
        if not isinstance(error, DeviceLost) and failed.batching.max_batch > 1:
            self._unproven.add(link.candidate.label)
        link.failed_at = link.failed_at or _now()
        link.backoff.failed(_now())
        self._record(link, error)
        return True

    def _record(self, link: Link, error: EdgeServeError) -> None:
        link.attempt = msgspec.structs.replace(
            link.attempt, tried=True, error=str(error), hint=error.hint, reason=reason_of(error)
        )

    def _nothing_works(self) -> EdgeServeError:
        failed = [a for a in (link.attempt for link in self.links) if a.error]
        kind = CheckFailed if failed[0].reason == "golden" else DeviceUnavailable
        return kind(
            f"no candidate of '{self.bundle.name}' works on this machine",
            cause="; ".join(f"{a.candidate.label}: {a.error}" for a in failed),
            hint=failed[0].hint,
        )

    def close(self) -> None:
        """Close what is open, and open nothing any more."""
        with self.lock:
            self.closed = True
        for link in self.links:
            if link.opened is not None:
                link.opened.close()
        if self.fault_state is not None:
            self.fault_state.cleanup()


def _now() -> float:
    return time.monotonic()
