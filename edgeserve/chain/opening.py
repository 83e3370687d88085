"""Opening one candidate: in this process or in one of its own, warmed up and proven."""

from __future__ import annotations

import itertools
import sys
import time
import weakref
from collections.abc import Callable, Sequence

import msgspec

from edgeserve.bundle import Batching, Bundle, Candidate, VariantFiles
from edgeserve.chain.batching import batching_of
from edgeserve.chain.device_check import Trial
from edgeserve.chain.failures import Reason
from edgeserve.chain.golden import check_batches, check_golden
from edgeserve.chain.memory import Room
from edgeserve.chain.options import ChainOptions
from edgeserve.devices.names import device_kind
from edgeserve.errors import CheckFailed, DeviceUnavailable, EdgeServeError, UsageError
from edgeserve.isolation import IsolatedSession, ProcessLimits, open_isolated
from edgeserve.runtimes import LoadOptions, Session, forget_compiled, runtime
from edgeserve.runtimes.guarded import load_guarded, load_known
from edgeserve.runtimes.inject import STAND_IN, Faults, parse_fault


class Attempt(msgspec.Struct, frozen=True):
    """What became of one candidate: open (`error` is None), failed, or not needed (`tried` False).

    `reason` is the failure's kind, as in metrics; `isolated` says whether it runs in a process of its own.
    """

    candidate: Candidate
    tried: bool
    error: str | None = None
    hint: str | None = None
    load_ms: float | None = None
    golden_error: float | None = None
    reason: Reason | None = None
    isolated: bool = False

    @property
    def ok(self) -> bool:
        return self.tried and self.error is None


def open_candidate(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int = 0,
    instances: int = 1,
    spin: bool = True,
    batches: tuple[int, ...] = (),
    faults: Sequence[str] = (),
    fault_state: str = "",
) -> Session:
    """Open one candidate of a bundle in this process, without any fallback."""
    options = _load_options(
        candidate,
        ChainOptions(threads=threads, instances=instances, spin=spin, batches=batches),
    )
    files, adapter = _files(bundle, candidate), runtime(candidate.runtime)
    if not faults:
        return load_known(adapter, files, candidate.device, options)
    injected = Faults.parse(faults, fault_state)
    return injected.load(adapter, files, candidate.device, options, candidate.label)


def open_session(
    bundle: Bundle,
    candidate: Candidate,
    options: ChainOptions,
    *,
    fault_state: str = "",
    cancelled: Callable[[], bool] = lambda: False,
) -> Session:
    """Open one candidate where `options` say: in this process, or in one of its own."""
    if is_isolated(candidate, options):
        return _open_isolated(
            bundle, candidate, options, fault_state=fault_state, cancelled=cancelled
        )
    return open_candidate(
        bundle,
        candidate,
        threads=options.threads,
        instances=options.instances,
        spin=options.spin,
        batches=options.batches,
    )


def open_apart(name: str, files: VariantFiles, device: str, options: LoadOptions) -> Session:
    """Open a variant: an accelerator in a process of its own, where its driver can do no harm, a CPU here.

    Whatever the engine raises becomes an EdgeServeError, at every call of the session, too.
    """
    if sys.platform != "linux" or device_kind(device) == "cpu":
        return load_guarded(runtime(name), files, device, options)
    label = f"{name}/{device}/{files.id}"
    return open_isolated(name, files, device, options, label=label, limits=ProcessLimits())


def settle(session: Session) -> None:
    """Its first runs are over: from now on calls are held to what those took, where it can be ended."""
    if isinstance(session, IsolatedSession):
        session.arm()


def _open_isolated(
    bundle: Bundle,
    candidate: Candidate,
    options: ChainOptions,
    *,
    fault_state: str = "",
    cancelled: Callable[[], bool] = lambda: False,
) -> IsolatedSession:
    """Open one candidate in a process of its own, with the faults that are injected into it."""
    return open_isolated(
        candidate.runtime,
        _files(bundle, candidate),
        candidate.device,
        _load_options(candidate, options),
        label=candidate.label,
        limits=ProcessLimits(options.open_timeout_s, options.watchdog_s, options.isolated_memory),
        faults=faults_for(candidate, options.inject),
        fault_state=fault_state,
        cancelled=cancelled,
    )


def _files(bundle: Bundle, candidate: Candidate) -> VariantFiles:
    """What the adapter opens: verified here, or by itself on reading."""
    if candidate.device == "cpu" and getattr(runtime(candidate.runtime), "reads_contents", False):
        return bundle.sealed_files(candidate.variant)
    return bundle.variant_files(candidate.variant)


def _load_options(candidate: Candidate, options: ChainOptions) -> LoadOptions:
    return LoadOptions(
        threads=options.threads,
        instances=options.instances,
        spin=options.spin,
        static_shapes=candidate.static_shapes,
        batches=options.batches,
        options=candidate.options,
    )


def is_isolated(candidate: Candidate, options: ChainOptions) -> bool:
    if sys.platform != "linux":
        return False  # an isolated process needs Linux's sockets and shared memory
    if faults_for(candidate, options.inject):
        return True  # a fault must not end the server itself
    if options.isolate == "accelerators":
        return candidate.kind != "cpu"
    return options.isolate == "always"


def faults_for(candidate: Candidate, inject: Sequence[str]) -> tuple[str, ...]:
    faults = [parse_fault(text) for text in inject]
    return tuple(f.text for f in faults if f.concerns(candidate.device, candidate.label))


def with_stand_ins(candidates: Sequence[Candidate], inject: Sequence[str]) -> tuple[Candidate, ...]:
    """The chain, with a copy of its first CPU candidate in front for each stand-in that it has no
    candidate for."""
    faults = [parse_fault(text) for text in inject]
    front: list[Candidate] = []
    for fault in faults:
        if fault.kind != STAND_IN or any(fault.concerns(c.device, c.label) for c in candidates):
            continue
        played = next((c for c in candidates if c.device == "cpu"), None)
        if played is None or "/" in fault.where:
            raise UsageError(
                f"'{fault.text}': no CPU candidate can stand in for '{fault.where}'",
                hint=f"the chain is {', '.join(c.label for c in candidates)}",
            )
        front.append(msgspec.structs.replace(played, device=fault.where))
    return (*front, *candidates)


class OpenedCandidate:
    """A candidate's session that reproduced the golden samples.

    Owns the session. One in this process is closed when the last call has left it and nobody refers to
    it any more; one in a process of its own is closed by its chain.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        candidate: Candidate,
        session: Session,
        load_ms: float,
        error: float,
        batching: Batching,
        trial: Trial,
    ) -> None:
        self.number = next(self._numbers)  # no other has it
        self.candidate = candidate
        self.session = session
        self.batching = batching  # how many rows requests may share on it
        self.load_ms = load_ms
        self.golden_error = error
        self.trial = trial
        self.failure: EdgeServeError | None = None  # why it is out of service
        self.room = Room()
        self.close = weakref.finalize(self, session.close)

    @property
    def isolated(self) -> IsolatedSession | None:
        return self.session if isinstance(self.session, IsolatedSession) else None


def open_proven(
    bundle: Bundle,
    candidate: Candidate,
    options: ChainOptions,
    *,
    fault_state: str,
    cancelled: Callable[[], bool],
    batching: Batching | None = None,
) -> OpenedCandidate:
    """Open, warm up, reproduce the golden samples; `batching` is what is known already of its batches.

    Raises what opening and the golden check raise; an engine that cannot be imported is
    DeviceUnavailable.
    """
    began = time.perf_counter()
    try:
        session = open_session(
            bundle, candidate, options, fault_state=fault_state, cancelled=cancelled
        )
    except ImportError as error:
        raise DeviceUnavailable(
            f"{candidate.runtime} cannot be imported", cause=str(error)
        ) from None
    try:
        golden_error = check_golden(bundle, session, candidate.variant)
        if batching is None:
            batching = batching_of(
                bundle, candidate, session, options.batches,
                tried=not faults_for(candidate, options.inject),
            )  # fmt: skip
        if batching.max_batch > 1:
            check_batches(bundle, session, candidate.variant, options.batches)
    except BaseException as error:
        session.close()
        if isinstance(error, CheckFailed):  # perhaps the compiled model is at fault
            files, load_options = (
                bundle.variant_files(candidate.variant),
                _load_options(candidate, options),
            )
            forget_compiled(runtime(candidate.runtime), files, candidate.device, load_options)
        raise
    settle(session)
    load_ms = 1000.0 * (time.perf_counter() - began)
    trial = Trial(bundle, session, candidate.variant, options.trust_s)
    return OpenedCandidate(candidate, session, load_ms, golden_error, batching, trial)
