"""A bundle being run: which candidate serves, what takes over when it fails, and when it comes back.

At load each candidate is opened, warmed up and must reproduce the golden samples; else the next one.
When the serving candidate fails a call, that call is run again on the next one, and only then answered;
whether the candidate goes on serving is decided by its golden samples.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from edgeserve.bundle import Batching, Bundle, Candidate
from edgeserve.chain.board import BOARD, DeviceBoard, device_key
from edgeserve.chain.candidates import Candidates
from edgeserve.chain.failures import in_words, reason_of
from edgeserve.chain.keeper import Keeper
from edgeserve.chain.links import ChainStatus, Fallback, Link, LinkStatus, Promotion, Replay
from edgeserve.chain.opening import Attempt, OpenedCandidate
from edgeserve.chain.options import ChainOptions
from edgeserve.chain.recovery import Answer, Detour, Recovery
from edgeserve.chain.running import Runner
from edgeserve.errors import (
    DeviceLost,
    DeviceUnavailable,
    EdgeServeError,
    InferenceFailed,
    ModelUnavailable,
)
from edgeserve.runtimes import Session
from edgeserve.tensors import Tensors

log = logging.getLogger(__name__)

Handler = Callable[[OpenedCandidate, Tensors, Sequence[Tensors], InferenceFailed], Answer | None]
# Over all chains, so that nothing of one is taken for another's.
_ERAS: Final = itertools.count()


class Chain:
    """The serving candidate's session, and the candidates around it.

    Owns its sessions, their processes, and one thread that opens failed candidates again. `run` may be
    called from several threads.
    """

    def __init__(
        self, bundle: Bundle, options: ChainOptions | None = None, board: DeviceBoard = BOARD
    ) -> None:
        """Open the first candidate that works.

        Raises BundleError when a file of the bundle is damaged, whatever else would work;
        DeviceUnavailable or CheckFailed when no candidate works, or not on the required device.
        """
        self.bundle = bundle
        self.interface = bundle.manifest.interface
        self.options = options or ChainOptions()
        self.options.check()
        self.fallbacks: list[Fallback] = []
        self.promotions: list[Promotion] = []
        self.board = board
        # Held while another candidate is opened to take over; the candidates' lock inside of it.
        self.stepping = threading.RLock()
        self.candidates = Candidates(bundle, self.options, board)
        self.links = self.candidates.links
        self._listeners: list[Callable[[], None]] = []
        only_a_cpu = len(self.links) == 1 and self.links[0].candidate.kind == "cpu"
        self.runner = Runner(bundle, self.options, alone=only_a_cpu)
        self.recovery = Recovery(self)
        self.keeper = Keeper(self)
        # Another one after each failure: what a device answered before it failed is not relied on.
        self.era = next(_ERAS)
        try:
            self._serving = self.candidates.open_first()
            self._require()
        except BaseException:
            self.close()
            raise
        self._since = time.time()
        if sys.platform != "linux" and self.candidate.kind != "cpu":
            text = "%s runs in this process: on %s a driver that crashes takes the server with it"
            log.warning(text, self.candidate.label, sys.platform)
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
        board.watch(self)
        self.candidates.report_losses(self.lost)
        self.keeper.wake()

    # What serves

    @property
    def attempts(self) -> list[Attempt]:
        """One entry per candidate, in order; the start-up table shows these."""
        return [link.attempt for link in self.links]

    @property
    def candidate(self) -> Candidate:
        """The candidate that serves now."""
        return self._serving.candidate

    @property
    def session(self) -> Session:
        return self._serving.session

    @property
    def serving(self) -> OpenedCandidate:
        return self._serving

    @property
    def batching(self) -> Batching:
        """How many rows requests may share on the candidate that serves now."""
        return self._serving.batching

    def batching_of(self, candidate: Candidate) -> Batching:
        """The same of a candidate that has served."""
        return self.candidates.batching[candidate.label]

    def stop_batching(self, candidate: Candidate, reason: str) -> None:
        """From now on requests share no batch on this candidate, also when it is opened again."""
        found = Batching(1, reason)
        self.candidates.batching[candidate.label] = found
        for link in self.links:
            if link.candidate.label == candidate.label and link.opened is not None:
                link.opened.batching = found
        self.tell()

    @property
    def may_wait(self) -> bool:
        """Whether a call may take much longer than now after a step up or down: in another process, or
        on a CPU in an accelerator's stead."""
        return any(link.isolated or link.candidate.kind != "cpu" for link in self.links)

    def status(self) -> ChainStatus:
        serving, first = self._serving, self.links[0]
        link = self.candidates.link_of(serving)
        away = link is not first or link.opened is not serving
        due = first.breaker.due
        return ChainStatus(
            candidate=serving.candidate,
            since=self._since,
            ready=link.opened is serving and self.options.is_required(serving.candidate),
            first=first.candidate,
            isolated=serving.isolated is not None,
            max_rows=serving.room.rows,
            reason=first.attempt.error if away else None,
            hint=first.attempt.hint if away else None,
            retry_s=max(0.0, due - _now()) if away and due is not None else None,
        )

    def link_statuses(self) -> list[LinkStatus]:
        """One entry per candidate, in order."""
        return [self._status_of(link) for link in self.links]

    def _status_of(self, link: Link) -> LinkStatus:
        opened, due = link.opened, link.breaker.due
        if opened is not None:
            return LinkStatus(link.attempt, "serving" if opened is self._serving else "standby")
        if due is not None:
            return LinkStatus(link.attempt, "waiting", max(0.0, due - _now()))
        if link.attempt.reason == "unsupported":
            return LinkStatus(link.attempt, "out")
        return LinkStatus(link.attempt, "closed" if self.options.fallback else "unused")

    def replays(self) -> Counter[Replay]:
        """How many requests failed on one candidate and were answered by another, so far."""
        return self.recovery.counted()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from any thread, after each step down or up."""
        self._listeners.append(listener)

    # Running

    def run(self, inputs: Tensors) -> Answer:
        """Run the checked inputs of one request; also say which candidate answered.

        Raises InputFailed when the request is at fault: the device reproduces its golden samples, and no
        other candidate can answer either. Raises InferenceFailed when the device fails and nothing takes
        over, ModelUnavailable while nothing serves.
        """
        return self._run(inputs, (inputs,), self.recovery.of_one)

    def attempt(self, inputs: Tensors) -> Answer | Detour:
        """As `run`, but what fails on what serves comes back as a detour, which somebody else may take."""
        serving, recovery = self._serving, self.recovery
        if serving.failure is not None:
            return self.run(inputs)
        if recovery.lethal.any:
            index = self.candidates.link_of(serving).index
            if recovery.lethal.are(index, inputs):
                return Detour(lambda: self.run(inputs))
        try:
            outputs = self.runner.answer(serving, inputs)
        except DeviceLost as error:
            recovery.lost(serving, (inputs,), error)
            return recovery.detour(inputs, serving, error)
        except InferenceFailed as error:
            return recovery.detour(inputs, serving, error)
        self._answered(serving, (inputs,))
        return outputs, serving.candidate

    def resume(self, inputs: Tensors, failed: OpenedCandidate, error: InferenceFailed) -> Answer:
        """Go on with a request that has failed once. Raises as `run` does."""
        if not isinstance(error, DeviceLost):
            answer = self.recovery.of_one(failed, inputs, (inputs,), error)
            if answer is not None:
                return answer
        return self._run(inputs, (inputs,), self.recovery.of_one, (failed.candidate, error))

    def run_batch(self, joined: Tensors, parts: Sequence[Tensors]) -> Answer:
        """Run several requests together, `joined` from `parts`.

        Raises InferenceFailed where one of them may have spoiled it for the others: then each is to be run
        apart; Detoured where the process ended that ran them. Otherwise as `run`.
        """
        return self._run(joined, parts, self.recovery.of_batch)

    def _run(
        self,
        inputs: Tensors,
        parts: Sequence[Tensors],
        recover: Handler,
        lost: tuple[Candidate, InferenceFailed] | None = None,
    ) -> Answer:
        recovery = self.recovery
        for _ in range(2 * len(self.links) + 2):
            serving = self._serving
            if serving.failure is not None:
                self._replace(serving, serving.failure)
                continue
            if recovery.lethal.any:
                answer = recovery.elsewhere(serving, parts)
                if answer is not None:
                    return answer
            try:
                outputs = self.runner.answer(serving, inputs)
            except InferenceFailed as error:
                answer = recover(serving, inputs, parts, error)
                if answer is not None:
                    return answer
                lost = lost or (serving.candidate, error)
            else:
                self._answered(serving, parts)
                if lost is not None:
                    recovery.count(lost[0], serving.candidate, lost[1], len(parts))
                return outputs, serving.candidate
        raise lost[1] if lost is not None else InferenceFailed("no candidate stays")

    def _answered(self, serving: OpenedCandidate, parts: Sequence[Tensors]) -> None:
        serving.trial.answered = True
        if self.recovery.lethal.any:
            self.recovery.lethal.answered(self.candidates.link_of(serving).index, parts)

    # Stepping down

    def _replace(self, failed: OpenedCandidate, failure: EdgeServeError) -> None:
        """Nothing took over from what failed before; perhaps something does now. Raises ModelUnavailable."""
        try:
            self.step_down(failed, failure.with_traceback(None))
        except EdgeServeError as error:
            raise ModelUnavailable("no device serves", cause=str(error), hint=error.hint) from None

    def step_down(self, failed: OpenedCandidate, error: EdgeServeError) -> None:
        """Have another candidate serve, unless `failed` does not serve any more. Without one it is opened
        again itself. Raises `error` when nothing opens."""
        link = self.candidates.link_of(failed)
        with self.stepping:
            if self._serving is failed and not self.candidates.closed:
                order = [*self.candidates.successors(link), link] if self.options.fallback else []
                if not self.mark_failed(link, failed, error):
                    # It had failed before, and nothing took over: what is not due again is not tried.
                    order = [x for x in order if x.opened is not None or x.breaker.is_due(_now())]
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
        """Take a candidate out of service. False when that had been done."""
        if not self.candidates.mark_failed(link, failed, error):
            return False
        self.era = next(_ERAS)
        self.keeper.retire(failed)
        if link.candidate.kind != "cpu":
            self.board.suspect(link.candidate.device, self)
        self.keeper.wake()
        return True

    def lost(self, opened: OpenedCandidate, error: EdgeServeError) -> None:
        """A candidate was found to have failed by somebody who has no answer to give."""
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
        """Have a candidate serve that was opened again, if it stands before the serving one."""
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
        link.breaker.served(_now())
        link.failed_at = None
        self._serving = opened
        self._since = time.time()

    # Helpers

    def _require(self) -> None:
        if self.options.is_required(self.candidate):
            return
        failures = [link.attempt for link in self.links if self.options.is_required(link.candidate)]
        cause = "; ".join(f"{a.candidate.label}: {a.error}" for a in failures if a.error)
        raise DeviceUnavailable(
            f"'{self.options.require}' is required, and {self.candidate.label} would serve",
            cause=cause or f"the chain has no candidate on '{self.options.require}'",
            hint=next(
                (a.hint for a in failures if a.hint), "edgeserve doctor shows what opens here"
            ),
        )

    # From the board, on any thread

    def suspect(self, device: str) -> None:
        if self.candidate.device == device:
            self.keeper.check_soon()

    def found(self, key: str) -> None:
        for link in self.links:
            if device_key(link.candidate) == key:
                link.breaker.hurry(_now())
        self.keeper.wake()

    def tell(self) -> None:
        for listener in self._listeners:
            listener()

    def close(self) -> None:
        self.candidates.closed = True
        self.keeper.close()
        self.candidates.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _now() -> float:
    return time.monotonic()
