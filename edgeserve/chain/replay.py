"""Replay of a request that failed: another candidate answers it, and the device is checked.

One request's outcome is evidence about that request. The golden samples are the evidence about the device.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from edgeserve.bundle import Candidate
from edgeserve.chain.crashing_inputs import LethalInputs
from edgeserve.chain.failures import NonFinite, is_out_of_memory, reason_of
from edgeserve.chain.links import Link, Replay
from edgeserve.chain.opening import OpenedCandidate
from edgeserve.chain.running import Runner
from edgeserve.chain.steps import Steps
from edgeserve.errors import (
    BeyondEngine,
    DeviceLost,
    EdgeServeError,
    InferenceFailed,
    InputFailed,
    InvalidInput,
    WrongNumbers,
)
from edgeserve.tensors import Tensors

log = logging.getLogger(__name__)

Answer = tuple[Tensors, Candidate]
# Goes on with a request that failed on a candidate with an error.
Resume = Callable[[Tensors, OpenedCandidate, InferenceFailed], Answer]


class Detour:
    """A request that failed on what serves. `answer` returns or raises what `Chain.run` would have; it may
    take long: another candidate may be slower, or have to be opened."""

    __slots__ = ("answer",)

    def __init__(self, answer: Callable[[], Answer]) -> None:
        self.answer = answer


class Detoured(Exception):
    """None of the requests that ran together was answered; each has its detour, in the same order."""

    def __init__(self, detours: list[Detour]) -> None:
        super().__init__("each request is answered by itself")
        self.detours = detours


class Replayer:
    """Of one chain. Called from the threads that run requests."""

    def __init__(self, chain: Steps, runner: Runner, resume: Resume) -> None:
        self._chain = chain
        self._runner = runner
        self._resume = resume
        self._counting = threading.Lock()
        self.lethal = LethalInputs()
        self._replays: Counter[Replay] = Counter()

    # A call failed. Each returns an answer from elsewhere, or None where there is something else to run
    # on now. Otherwise it raises the error that the request gets.

    def of_one(
        self,
        failed: OpenedCandidate,
        inputs: Tensors,
        parts: Sequence[Tensors],
        error: InferenceFailed,
    ) -> Answer | None:
        """A request failed. Raises InputFailed where it is at fault, and the device's own error."""
        chain = self._chain
        if isinstance(error, DeviceLost):
            self.lost(failed, parts, error)
            return None
        if isinstance(error, BeyondEngine):
            return self._of_another_engine(failed, inputs, error)
        if chain.serving is not failed:
            return None  # another thread was here first
        backup = self._backup(failed, inputs)
        if backup is None:
            return self._alone(failed, inputs, error)
        try:
            answer = self._runner.answer(backup, inputs), backup.candidate
        except NonFinite as also:
            return also.outputs, backup.candidate  # these inputs lead there
        except InferenceFailed:
            if not self._is_right(failed):
                chain.step_down(failed, error)
                return None
            if isinstance(error, NonFinite):
                return error.outputs, failed.candidate
            raise _at_fault(error) from None
        self.count(failed.candidate, backup.candidate, error, 1)
        self._doubt(failed, error)
        return answer

    def of_batch(
        self,
        failed: OpenedCandidate,
        inputs: Tensors,
        parts: Sequence[Tensors],
        error: InferenceFailed,
    ) -> Answer | None:
        """Several requests failed together. Raises `error` where each is to be run apart, and Detoured where
        a process ended."""
        if isinstance(error, DeviceLost):
            self.lost(failed, parts, error)
            raise Detoured([self.detour(inputs, failed, error) for inputs in parts])
        if self._chain.serving is not failed:
            return None
        raise error

    def _alone(
        self, failed: OpenedCandidate, inputs: Tensors, error: InferenceFailed
    ) -> Answer | None:
        """Nothing else can answer."""
        chain = self._chain
        if not self._is_right(failed):
            chain.step_down(failed, error)
            return None
        if isinstance(error, NonFinite):
            return error.outputs, failed.candidate
        try:  # once more: a single failure is not the request's fault
            answer = self._runner.answer(failed, inputs), failed.candidate
        except NonFinite as also:
            return also.outputs, failed.candidate
        except DeviceLost as lost:
            self.lost(failed, (inputs,), lost)
            return None
        except InferenceFailed as again:
            raise _at_fault(again) from None
        self.count(failed.candidate, failed.candidate, error, 1)
        return answer

    def detour(self, inputs: Tensors, failed: OpenedCandidate, error: InferenceFailed) -> Detour:
        return Detour(lambda: self._resume(inputs, failed, error))

    def lost(self, failed: OpenedCandidate, parts: Sequence[Tensors], error: DeviceLost) -> None:
        """A process ended. Whether these requests ended it shows when they come again."""
        chain = self._chain
        link = chain.candidates.link_of(failed)
        ended = self.lethal.struck(link.index, failed.number, parts)
        try:
            chain.step_down(failed, error)
        finally:
            for index, times in ended.items():
                chain.links[index].backoff.explained(times, time.monotonic())
            if ended:
                text = "%s: the same inputs ended a process %d times, and are not run there again"
                log.warning(text, link.candidate.label, sum(ended.values()))
                chain.keeper.wake()

    # Elsewhere

    def elsewhere(self, serving: OpenedCandidate, parts: Sequence[Tensors]) -> Answer | None:
        """An answer for inputs that what serves must not be asked for; None for all others.

        Raises InferenceFailed where such a request is one of several, InputFailed where it cannot be
        answered anywhere.
        """
        link = self._chain.candidates.link_of(serving)
        if not any(self.lethal.are(link.index, inputs) for inputs in parts):
            return None
        error = DeviceLost(
            f"these inputs ended the process of {link.candidate.label} more than once",
            hint="the server's log has the driver's last output",
        )
        if len(parts) > 1:
            raise error
        backup = self._backup(serving, parts[0])
        if backup is None:
            raise _at_fault(error)
        try:
            answer = self._runner.answer(backup, parts[0]), backup.candidate
        except NonFinite as also:
            return also.outputs, backup.candidate
        except InferenceFailed as also:
            if isinstance(also, DeviceLost):
                self.lost(backup, parts, also)
            raise _at_fault(also) from None
        self.count(serving.candidate, backup.candidate, error, 1)
        return answer

    def _of_another_engine(
        self, serving: OpenedCandidate, inputs: Tensors, error: BeyondEngine
    ) -> Answer:
        """An answer of a candidate whose engine takes these values; what serves goes on serving.

        Raises InvalidInput where no engine of the chain does.
        """
        for link in self._others(serving, inputs):
            with self._chain.stepping:
                opened = self._chain.candidates.open_one([link])
            if opened is None:
                continue
            try:
                answer = self._runner.answer(opened, inputs), opened.candidate
            except InferenceFailed as also:
                log.debug("%s: %s", opened.candidate.label, also)
                continue
            self.count(serving.candidate, opened.candidate, error, 1)
            return answer
        raise InvalidInput(error.message, cause=error.cause, hint=error.hint)

    def _backup(self, failed: OpenedCandidate, inputs: Tensors) -> OpenedCandidate | None:
        """Another candidate that is open, or opens for the first time."""
        with self._chain.stepping:
            return self._chain.candidates.open_one(self._others(failed, inputs))

    def _others(self, failed: OpenedCandidate, inputs: Tensors) -> list[Link]:
        """Who may answer instead. What failed lately is the keeper's business: no request has a device
        tried before its time."""
        chain = self._chain
        if not chain.options.fallback:
            return []

        def fit(link: Link) -> bool:
            untried = link.backoff.due is None and link.attempt.reason != "unsupported"
            lethal = self.lethal.any and self.lethal.are(link.index, inputs)
            return (link.opened is not None or untried) and not lethal

        order = chain.candidates.successors(chain.candidates.link_of(failed))
        return [link for link in order if fit(link)]

    # The device

    def _is_right(self, opened: OpenedCandidate) -> bool:
        return opened.trial.stands or opened.trial.check() is None

    def _doubt(self, opened: OpenedCandidate, error: InferenceFailed) -> None:
        """Have the keeper look whether the device is right, unless that is known."""
        trial = opened.trial
        if not trial.stands:
            trial.doubt = trial.doubt or error
            self._chain.keeper.check_soon()

    # What is counted

    def count(
        self, source: Candidate, destination: Candidate, error: EdgeServeError, requests: int
    ) -> None:
        """Requests that failed on `source` were answered by `destination`."""
        replay = Replay(source.label, destination.label, reason_of(error))
        with self._counting:
            self._replays[replay] += requests
        self._chain.tell()

    def counted(self) -> Counter[Replay]:
        with self._counting:
            return self._replays.copy()


def _at_fault(error: InferenceFailed) -> InferenceFailed:
    """The error of a request that fails on a device which reproduces its golden samples."""
    if isinstance(error, WrongNumbers) or is_out_of_memory(error):
        return error
    return InputFailed(
        f"the model fails on these inputs: {error.message}", cause=error.cause, hint=error.hint
    )
