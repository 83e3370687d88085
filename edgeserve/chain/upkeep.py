"""Upkeep of a chain: opens failed candidates again, keeps a standby, runs golden checks, closes sessions."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from edgeserve.chain.device_health import device_key
from edgeserve.chain.failures import in_words
from edgeserve.chain.golden import check_golden
from edgeserve.chain.links import Link
from edgeserve.chain.opening import OpenedCandidate
from edgeserve.chain.steps import Steps
from edgeserve.errors import CheckFailed, DeviceLost, EdgeServeError, WrongNumbers

log = logging.getLogger(__name__)

_GRACE_S: Final = 5.0
_SPARE_BYTES: Final = 256 << 20


class Keeper:
    """Owns one thread, started when there is work. Opens and checks on that thread, so no request waits."""

    def __init__(self, chain: Steps) -> None:
        self._chain = chain
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._work = True
        self._check = False
        self._retired: list[tuple[OpenedCandidate, float]] = []
        self._next_check = time.monotonic() + chain.options.recheck_s
        self._standby_done = False

    def wake(self) -> None:
        """Something has changed."""
        with self._changed:
            self._work = True
            self._changed.notify()
            if self._thread is None and not self._chain.candidates.closed and self._needed():
                self._thread = threading.Thread(
                    target=self._run, name="edgeserve-keeper", daemon=True
                )
                self._thread.start()

    def check_soon(self) -> None:
        self._check = True
        self.wake()

    def retire(self, opened: OpenedCandidate) -> None:
        """Close a session that no longer serves: a process once its calls are over, at once if it is lost."""
        if opened.isolated is not None:
            with self._changed:
                self._retired.append((opened, time.monotonic()))
            self.wake()

    def let_go(self, link: Link) -> None:
        """A better candidate serves instead: close this one unless it is the standby."""
        opened = link.opened
        if opened is None or self._keeps(link):
            return
        with self._chain.candidates.lock:
            link.opened = None
        self.retire(opened)

    def close(self) -> None:
        with self._changed:
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10.0)
        for opened, _ in self._retired:
            opened.close()

    def _needed(self) -> bool:
        chain = self._chain
        return bool(
            self._retired
            or self._check
            or chain.options.recheck_s
            or self._wants_standby()
            or any(link.backoff.due is not None for link in chain.links)
        )

    def _run(self) -> None:
        while not self._chain.candidates.closed:
            with self._changed:
                if not self._work:
                    self._changed.wait(self._pause())
                self._work = False
            if self._chain.candidates.closed:
                return
            try:
                self._turn()
            except Exception:
                log.exception("the chain's keeper failed")

    def _pause(self) -> float | None:
        """Seconds until there is something to do; None: until something changes."""
        now = time.monotonic()
        times = [link.backoff.due for link in self._chain.links if link.backoff.due is not None]
        if self._chain.options.recheck_s:
            times.append(self._next_check)
        if self._check:
            times.append(self._chain.serving.trial.next_check)
        if self._retired:
            times.append(now + 0.1)
        return max(0.0, min(times) - now) if times else None

    def _turn(self) -> None:
        self._close_retired()
        if self._is_check_due():
            self._check = False
            self._next_check = time.monotonic() + self._chain.options.recheck_s
            self._recheck()
        for link in self._chain.links:
            due = link.backoff.due
            if due is not None and time.monotonic() >= due and not self._chain.candidates.closed:
                self._reopen(link)
        if not self._standby_done and self._wants_standby():
            self._open_standby()

    def _is_check_due(self) -> bool:
        now = time.monotonic()
        if self._check and now >= self._chain.serving.trial.next_check:
            return True
        return self._chain.options.recheck_s > 0 and now >= self._next_check

    def _reopen(self, link: Link) -> None:
        chain = self._chain
        serving = chain.serving.candidate
        behind = link.index > next(i.index for i in chain.links if i.candidate is serving)
        if behind and not self._keeps(link):
            link.backoff.give_up()  # it is opened when it is needed
            return
        if not chain.options.fallback and link.candidate is not serving:
            link.backoff.give_up()
            return
        self._try(link)

    def _try(self, link: Link) -> None:
        """Try a candidate that had failed."""
        chain = self._chain
        known = chain.board.known_lost(device_key(link.candidate), time.monotonic())
        if (
            known is not None
            and link.attempt.reason == "unavailable"
            and known[1] > (link.backoff.due or 0)
        ):
            link.backoff.postpone(known[1])  # another chain has just tried
            return
        try:
            opened = chain.candidates.open(link)
            # Once more: what works once after a failure may not work twice.
            check_golden(chain.bundle, opened.session, link.candidate.variant)
        except EdgeServeError as error:
            if link.opened is None or not chain.mark_failed(link, link.opened, error):
                chain.candidates.note_failure(link, error, at_start=False)
            log.info("%s is still out: %s", link.candidate.label, error)
            return
        chain.promote(link, opened)

    def _recheck(self) -> None:
        """Golden check of what serves; step down when it fails."""
        chain = self._chain
        serving = chain.serving
        if serving.failure is not None:
            return
        doubt, serving.trial.doubt = serving.trial.doubt, None
        verdict = serving.trial.check()
        if verdict is None:
            if doubt is not None:
                text = "a request failed on %s, which reproduces its golden samples and goes on serving: %s"
                log.warning(text, serving.candidate.label, in_words(doubt))
            return
        if doubt is not None and not isinstance(verdict, DeviceLost):
            verdict = doubt
        elif isinstance(verdict, CheckFailed):
            verdict = WrongNumbers(verdict.message, cause=verdict.cause, hint=verdict.hint)
        chain.lost(serving, verdict)

    def _close_retired(self) -> None:
        now = time.monotonic()
        with self._changed:
            waiting, self._retired = self._retired, []
        for opened, since in waiting:
            session = opened.isolated
            if session is None or session.idle or now - since > _GRACE_S:
                opened.close()
            else:
                with self._changed:
                    self._retired.append((opened, since))

    # Standby

    def _standby(self) -> Link | None:
        """The candidate that would take over from the first one that serves."""
        chain = self._chain
        serving = chain.serving.candidate
        index = next(link.index for link in chain.links if link.candidate is serving)
        behind = chain.links[index + 1 :]
        on_cpu = [link for link in behind if link.candidate.device == "cpu"]
        return next(iter(on_cpu or behind), None)

    def _keeps(self, link: Link) -> bool:
        return self._wants_standby() and self._standby() is link

    def _wants_standby(self) -> bool:
        chain = self._chain
        if not chain.options.fallback or chain.options.standby == "cold":
            return False
        link = self._standby()
        if link is None:
            return False
        if chain.options.standby == "warm":
            return True
        if chain.serving.candidate.kind == "cpu":
            return False
        needed = 3 * chain.bundle.manifest.variant(link.candidate.variant).size_bytes + _SPARE_BYTES
        return needed < _available_bytes()

    def _open_standby(self) -> None:
        self._standby_done = True
        link = self._standby()
        if link is None or link.opened is not None:
            return
        try:
            self._chain.candidates.open(link)
        except EdgeServeError as error:
            if not self._chain.candidates.closed:
                log.warning("%s cannot be the standby: %s", link.candidate.label, error)


def _available_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
