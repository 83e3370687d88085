"""A bundle being run: which candidate serves, what takes over when it fails, and when it comes back.

At load each candidate is opened, warmed up and must reproduce the golden samples; else the next one.
When the serving candidate fails a call, that call is run again on the next one, and only then answered;
whether the candidate goes on serving is decided by its golden samples.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from edgeserve.bundle import Batching, Bundle, Candidate
from edgeserve.chain.device_health import BOARD, DeviceBoard
from edgeserve.chain.links import ChainStatus, Link, LinkStatus, Replay
from edgeserve.chain.opening import Attempt, OpenedCandidate
from edgeserve.chain.options import ChainOptions
from edgeserve.chain.replay import Answer, Detour, Replayer
from edgeserve.chain.running import Runner
from edgeserve.chain.steps import Steps
from edgeserve.chain.upkeep import Keeper
from edgeserve.errors import (
    DeviceLost,
    EdgeServeError,
    InferenceFailed,
    ModelUnavailable,
)
from edgeserve.runtimes import Session
from edgeserve.tensors import Tensors

log = logging.getLogger(__name__)

Handler = Callable[[OpenedCandidate, Tensors, Sequence[Tensors], InferenceFailed], Answer | None]


class Chain(Steps):
    """The serving candidate's session, and the candidates around it.

    Owns its sessions, their processes, and one thread that opens failed candidates again. `run` may be
    called from several threads.
    """

    keeper: Keeper

    def __init__(
        self, bundle: Bundle, options: ChainOptions | None = None, board: DeviceBoard = BOARD
    ) -> None:
        """Open the first candidate that works.

        Raises BundleError when a file of the bundle is damaged, whatever else would work;
        DeviceUnavailable or CheckFailed when no candidate works, or not on the required device.
        """
        options = options or ChainOptions()
        options.check()
        super().__init__(bundle, options, board)
        self.interface = bundle.manifest.interface
        only_a_cpu = len(self.links) == 1 and self.links[0].candidate.kind == "cpu"
        self.runner = Runner(bundle, options, alone=only_a_cpu)
        self.replayer = Replayer(self, self.runner, self.resume)
        self.keeper = Keeper(self)
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        if sys.platform != "linux" and self.candidate.kind != "cpu":
            text = "%s runs in this process: on %s a driver that crashes takes the server with it"
            log.warning(text, self.candidate.label, sys.platform)
        board.watch(self)
        self.candidates.report_losses(self.lost)
        self.keeper.wake()

    # What serves

    @property
    def attempts(self) -> list[Attempt]:
        """One entry per candidate, in order; the start-up table shows these."""
        return [link.attempt for link in self.links]

    @property
    def session(self) -> Session:
        return self._serving.session

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
        due = first.backoff.due
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
        opened, due = link.opened, link.backoff.due
        if opened is not None:
            return LinkStatus(link.attempt, "serving" if opened is self._serving else "standby")
        if due is not None:
            return LinkStatus(link.attempt, "waiting", max(0.0, due - _now()))
        if link.attempt.reason == "unsupported":
            return LinkStatus(link.attempt, "out")
        return LinkStatus(link.attempt, "closed" if self.options.fallback else "unused")

    def replays(self) -> Counter[Replay]:
        """How many requests failed on one candidate and were answered by another, so far."""
        return self.replayer.counted()

    # Running

    def run(self, inputs: Tensors) -> Answer:
        """Run the checked inputs of one request; also say which candidate answered.

        Raises InputFailed when the request is at fault: the device reproduces its golden samples, and no
        other candidate can answer either. Raises InferenceFailed when the device fails and nothing takes
        over, ModelUnavailable while nothing serves.
        """
        return self._run(inputs, (inputs,), self.replayer.of_one)

    def attempt(self, inputs: Tensors) -> Answer | Detour:
        """Like `run`, but a request that fails on the serving candidate is returned as a Detour, to be run
        elsewhere."""
        serving, replayer = self._serving, self.replayer
        if serving.failure is not None:
            return self.run(inputs)
        if replayer.lethal.any:
            index = self.candidates.link_of(serving).index
            if replayer.lethal.are(index, inputs):
                return Detour(lambda: self.run(inputs))
        try:
            outputs = self.runner.answer(serving, inputs)
        except DeviceLost as error:
            replayer.lost(serving, (inputs,), error)
            return replayer.detour(inputs, serving, error)
        except InferenceFailed as error:
            return replayer.detour(inputs, serving, error)
        self._answered(serving, (inputs,))
        return outputs, serving.candidate

    def resume(self, inputs: Tensors, failed: OpenedCandidate, error: InferenceFailed) -> Answer:
        """Go on with a request that has failed once. Raises as `run` does."""
        if not isinstance(error, DeviceLost):
            answer = self.replayer.of_one(failed, inputs, (inputs,), error)
            if answer is not None:
                return answer
        return self._run(inputs, (inputs,), self.replayer.of_one, (failed.candidate, error))

    def run_batch(self, joined: Tensors, parts: Sequence[Tensors]) -> Answer:
        """Run several requests together, `joined` from `parts`.

        Raises InferenceFailed where one of them may have spoiled it for the others: then each is to be run
        apart; Detoured where the process ended that ran them. Otherwise as `run`.
        """
        return self._run(joined, parts, self.replayer.of_batch)

    def _run(
        self,
        inputs: Tensors,
        parts: Sequence[Tensors],
        recover: Handler,
        lost: tuple[Candidate, InferenceFailed] | None = None,
    ) -> Answer:
        replayer = self.replayer
        for _ in range(2 * len(self.links) + 2):
            serving = self._serving
            if serving.failure is not None:
                self._replace(serving, serving.failure)
                continue
            if replayer.lethal.any:
                answer = replayer.elsewhere(serving, parts)
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
                    replayer.count(lost[0], serving.candidate, lost[1], len(parts))
                return outputs, serving.candidate
        raise lost[1] if lost is not None else InferenceFailed("no candidate kept serving")

    def _answered(self, serving: OpenedCandidate, parts: Sequence[Tensors]) -> None:
        serving.trial.answered = True
        if self.replayer.lethal.any:
            self.replayer.lethal.answered(self.candidates.link_of(serving).index, parts)

    def _replace(self, failed: OpenedCandidate, failure: EdgeServeError) -> None:
        """Nothing took over from a failed candidate so far: try again. Raises ModelUnavailable."""
        try:
            self.step_down(failed, failure.with_traceback(None))
        except EdgeServeError as error:
            raise ModelUnavailable("no device serves", cause=str(error), hint=error.hint) from None

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
