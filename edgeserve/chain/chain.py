"""Opening a bundle's chain with fallback, and running it.

At load each candidate is opened, warmed up and must reproduce the golden samples; else the next one.
When the serving candidate fails a request, that request is run again on the next one.
"""

from __future__ import annotations

import logging
import threading
import time

import msgspec

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain.golden import check_golden
from edgeserve.errors import (
    BundleError,
    CheckFailed,
    DeviceUnavailable,
    EdgeServeError,
    InferenceFailed,
    UsageError,
)
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.tensors import Tensors

log = logging.getLogger(__name__)


class ChainOptions(msgspec.Struct, frozen=True):
    """How to open a chain. `fallback=False` fails with the first candidate's own error;
    `device` keeps only candidates on that device; `threads`, `instances` and `spin` as in LoadOptions."""

    fallback: bool = True
    device: str | None = None
    variant: str | None = None
    threads: int = 0
    instances: int = 1
    spin: bool = True


class Attempt(msgspec.Struct, frozen=True):
    """What became of one candidate: serving (`error` is None), failed, or not needed (`tried` False)."""

    candidate: Candidate
    tried: bool
    error: str | None = None
    hint: str | None = None
    load_ms: float | None = None
    golden_error: float | None = None

    @property
    def ok(self) -> bool:
        return self.tried and self.error is None


class Fallback(msgspec.Struct, frozen=True):
    """One step down the chain at run time, for logs and metrics."""

    source: Candidate
    destination: Candidate
    reason: str


def open_candidate(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int = 0,
    instances: int = 1,
    spin: bool = True,
) -> Session:
    """Open one candidate of a bundle, without any fallback."""
    return runtime(candidate.runtime).load(
        bundle.variant_files(candidate.variant),
        candidate.device,
        LoadOptions(
            threads=threads,
            instances=instances,
            spin=spin,
            static_shapes=candidate.static_shapes,
            options=candidate.options,
        ),
    )


class Chain:
    """A bundle being run: the serving candidate's session, and the candidates below it.

    Owns its sessions. `run` may be called from several threads.
    """

    def __init__(self, bundle: Bundle, options: ChainOptions | None = None) -> None:
        """Open the first candidate that works.

        Raises BundleError when a file of the bundle is damaged, whatever else would work;
        DeviceUnavailable or CheckFailed when no candidate works.
        """
        self.bundle = bundle
        self.interface = bundle.manifest.interface
        self.options = options or ChainOptions()
        self.fallbacks: list[Fallback] = []
        self._lock = threading.Lock()
        self._candidates = self._selected()
        self._attempts = [Attempt(c, tried=False) for c in self._candidates]
        self._retired: list[Session] = []
        self._index, self._session = self._open_from(0)

    def _selected(self) -> list[Candidate]:
        chosen = [
            c
            for c in self.bundle.manifest.chain
            if (self.options.device in (None, c.device, c.device.partition(".")[0]))
            and self.options.variant in (None, c.variant)
        ]
        if not chosen:
            known = ", ".join(c.label for c in self.bundle.manifest.chain)
            raise UsageError("no candidate of the chain matches", hint=f"the chain is {known}")
        return chosen

    @property
    def attempts(self) -> list[Attempt]:
        """One entry per candidate, in order; the start-up table shows these."""
        return list(self._attempts)

    @property
    def candidate(self) -> Candidate:
        """The candidate that serves now."""
        return self._candidates[self._index]

    @property
    def session(self) -> Session:
        return self._session

    def run(self, inputs: Tensors) -> tuple[Tensors, Candidate]:
        """Run checked inputs; also say which candidate answered.

        Raises InferenceFailed when every candidate failed, with fallback off, or when the candidate
        still reproduces the golden samples: then the request is at fault.
        """
        while True:
            session, index = self._session, self._index
            try:
                return session.run(inputs), self._candidates[index]
            except InferenceFailed as error:
                if not self.options.fallback:
                    raise
                self._step_down(index, error)

    def _step_down(self, failed: int, error: InferenceFailed) -> None:
        """Move to the next candidate unless another thread has done so since `failed` was read."""
        with self._lock:
            if self._index != failed:
                return
            candidate = self._candidates[failed]
            if self._still_right(candidate):
                raise error  # the request is at fault, not the device
            log.error("%s failed while running: %s", candidate.label, error)
            if failed + 1 == len(self._candidates):
                raise error
            self._attempts[failed] = msgspec.structs.replace(
                self._attempts[failed], error=str(error), hint=error.hint
            )
            try:
                index, session = self._open_from(failed + 1)
            except EdgeServeError as problem:
                log.warning("nothing takes over: %s", problem)
                raise error from None
            # Calls may still be inside the old session: it is closed with the chain.
            self._retired.append(self._session)
            self._session, self._index = session, index
            self.fallbacks.append(Fallback(candidate, self._candidates[index], "error"))

    def _still_right(self, candidate: Candidate) -> bool:
        try:
            check_golden(self.bundle, self._session, candidate.variant)
        except EdgeServeError:
            return False
        return True

    def _open_from(self, start: int) -> tuple[int, Session]:
        first_error: EdgeServeError | None = None
        for index in range(start, len(self._candidates)):
            candidate = self._candidates[index]
            began = time.perf_counter()
            session: Session | None = None
            try:
                session = open_candidate(
                    self.bundle,
                    candidate,
                    threads=self.options.threads,
                    instances=self.options.instances,
                    spin=self.options.spin,
                )
                golden_error = check_golden(self.bundle, session, candidate.variant)
            except (EdgeServeError, ImportError) as error:
                if session is not None:
                    session.close()
                if isinstance(error, BundleError):
                    raise  # damage is no reason to serve something else
                known = (
                    error
                    if isinstance(error, EdgeServeError)
                    else DeviceUnavailable(
                        f"{candidate.runtime} cannot be imported", cause=str(error)
                    )
                )
                self._attempts[index] = Attempt(
                    candidate, tried=True, error=str(known), hint=known.hint
                )
                log.warning("%s: %s", candidate.label, known)
                first_error = first_error or known
                if not self.options.fallback:
                    raise known from None
                continue
            elapsed = 1000.0 * (time.perf_counter() - began)
            self._attempts[index] = Attempt(
                candidate, tried=True, load_ms=elapsed, golden_error=golden_error
            )
            return index, session
        failures = "; ".join(f"{a.candidate.label}: {a.error}" for a in self._attempts if a.error)
        error_type = type(first_error) if isinstance(first_error, CheckFailed) else None
        raise (error_type or DeviceUnavailable)(
            f"no candidate of '{self.bundle.name}' works on this machine",
            cause=failures,
            hint=first_error.hint if first_error else None,
        )

    def close(self) -> None:
        self._session.close()
        for session in self._retired:
            session.close()
        self._retired.clear()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
