"""What is measured: candidates of a bundle's chain, and the source they were made from when it is given.

Opening one never falls back, and none is timed before it has reproduced the golden samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from edgeserve.bundle import Bundle, Candidate, Precision, VariantFiles
from edgeserve.chain import (
    ChainOptions,
    check_golden,
    faults_for,
    golden_batches,
    open_candidate,
    open_session,
    relative_rms_error,
    settle,
    with_stand_ins,
)
from edgeserve.errors import (
    BundleError,
    CheckFailed,
    DeviceLost,
    EdgeServeError,
    UsageError,
    nearest,
)
from edgeserve.runtimes import LoadOptions, Placement, Session, runtime
from edgeserve.runtimes.guarded import asked_placement
from edgeserve.tensors import Tensors

SOURCE_INDEX: Final = -1
_SOURCE_TOLERANCE: Final = 1e-3  # fp32 against fp32: only the order of sums may differ


class InjectedFaults(msgspec.Struct, frozen=True):
    """Injected faults (edgeserve.runtimes.inject), and the folder where those that were used up are noted."""

    texts: tuple[str, ...] = ()
    state: str = ""


class Subject(msgspec.Struct, frozen=True):
    """One thing to measure. `index` is its place in the chain, SOURCE_INDEX for the source model."""

    index: int
    candidate: Candidate
    precision: Precision
    size_bytes: int
    source: Path | None = None
    faults: InjectedFaults = InjectedFaults()

    @property
    def key(self) -> str:
        return str(self.index)

    @property
    def label(self) -> str:
        return self.candidate.label

    def open_here(self, bundle: Bundle, *, threads: int = 0, instances: int = 1) -> Session:
        """In this process, which a driver may take with it. Raises what the runtime raises, with the
        engine's own message."""
        if self.source is None:
            return open_candidate(
                bundle,
                self.candidate,
                threads=threads,
                instances=instances,
                faults=faults_for(self.candidate, self.faults.texts),
                fault_state=self.faults.state,
            )
        files = VariantFiles(
            self.candidate.variant, self.source, "onnx", "fp32", bundle.manifest.interface
        )
        options = LoadOptions(threads=threads, instances=instances)
        return runtime(self.candidate.runtime).load(files, self.candidate.device, options)

    def open(self, bundle: Bundle, *, threads: int = 0, instances: int = 1) -> Session:
        """As it is served: an accelerator in a process of its own. Raises as `open_here`."""
        if self.source is not None:
            return self.open_here(bundle, threads=threads, instances=instances)
        options = ChainOptions(threads=threads, instances=instances, inject=self.faults.texts)
        return open_session(bundle, self.candidate, options, fault_state=self.faults.state)

    def check(self, bundle: Bundle, session: Session) -> float:
        """The worst relative RMS error on the golden samples. Raises CheckFailed beyond tolerance."""
        if self.source is None:
            return check_golden(bundle, session, self.candidate.variant)
        outputs = [session.run(request) for request in requests_of(bundle)]
        wanted = golden_batches(bundle.manifest.interface, bundle.golden()[1])
        worst = max(
            relative_rms_error(
                np.stack([w[spec.name] for w in wanted]), np.stack([o[spec.name] for o in outputs])
            )
            for spec in session.outputs
        )
        if worst > _SOURCE_TOLERANCE:
            raise CheckFailed(
                f"{self.source} does not reproduce the golden samples",
                cause=f"relative RMS error {worst:.3g}, tolerated {_SOURCE_TOLERANCE:.3g}",
                hint="--against takes the model the bundle was converted from",
            )
        return worst


class Skipped(msgspec.Struct, frozen=True):
    """A subject that could not be measured, at which step, and the engine's own reason."""

    label: str
    device: str
    stage: Literal["open", "golden", "run"]
    reason: str
    hint: str | None = None


class OpenSubject(msgspec.Struct, frozen=True):
    """A subject that opened and reproduced the golden samples. Whoever opened it closes the session."""

    subject: Subject
    session: Session
    placement: Placement
    golden_error: float


def select(
    bundle: Bundle,
    *,
    device: str | None = None,
    variant: str | None = None,
    against: Path | None = None,
    faults: InjectedFaults = InjectedFaults(),  # noqa: B008 - frozen
) -> list[Subject]:
    """The chain's candidates on `device` (`gpu` means any GPU) with `variant`, in order, then the source.

    Raises UsageError when none matches, and for faults that are none.
    """
    manifest = bundle.manifest
    chain = with_stand_ins(manifest.chain, faults.texts)
    subjects = []
    for index, candidate in enumerate(chain):
        if not candidate.is_on(device):
            continue
        if variant in (None, candidate.variant):
            found = manifest.variant(candidate.variant)
            subjects.append(
                Subject(index, candidate, found.precision, found.size_bytes, faults=faults)
            )
    if not subjects:
        guess = nearest(variant, {c.variant for c in chain}) if variant else None
        known = ", ".join(c.label for c in chain)
        raise UsageError(
            f"no candidate of '{bundle.name}' matches",
            cause=", ".join(f"{k} {v}" for k, v in (("device", device), ("variant", variant)) if v),
            hint=f"did you mean '{guess}'? " * bool(guess) + f"the chain is {known}",
        )
    if against is not None:
        subjects.append(source_subject(against))
    return subjects


def source_subject(model: Path) -> Subject:
    """The source ONNX model, in fp32 in onnxruntime on the CPU. Raises UsageError."""
    if not model.is_file():
        raise UsageError(f"{model} does not exist", hint="--against takes an ONNX file")
    candidate = Candidate("source", "onnxruntime", "cpu")
    return Subject(SOURCE_INDEX, candidate, "fp32", model.stat().st_size, model)


def requests_of(bundle: Bundle) -> list[Tensors]:
    """The golden inputs as requests: what everything is measured with."""
    return golden_batches(bundle.manifest.interface, bundle.golden()[0])


def open_all(
    bundle: Bundle, subjects: Iterable[Subject], *, threads: int = 0
) -> tuple[list[OpenSubject], list[Skipped]]:
    """Open every subject and check it. A damaged bundle raises BundleError; what this machine cannot
    open is skipped with its reason. On an exception the sessions opened so far are closed."""
    opened: list[OpenSubject] = []
    skipped: list[Skipped] = []
    try:
        for subject in subjects:
            result = _open(bundle, subject, threads)
            if isinstance(result, OpenSubject):
                opened.append(result)
            else:
                skipped.append(result)
    except BaseException:
        close_all(opened)
        raise
    return opened, skipped


def close_all(opened: Iterable[OpenSubject]) -> None:
    for item in opened:
        item.session.close()


def _open(bundle: Bundle, subject: Subject, threads: int) -> OpenSubject | Skipped:
    stage: Literal["open", "golden"] = "open"
    session: Session | None = None
    try:
        session = subject.open(bundle, threads=threads)
        stage = "golden"
        error = subject.check(bundle, session)
        settle(session)
        return OpenSubject(subject, session, asked_placement(session), error)
    except (EdgeServeError, ImportError) as problem:
        if session is not None:
            session.close()
        if isinstance(problem, BundleError):
            raise
        return skipped_because(subject, stage, problem)


def skipped_because(
    subject: Subject, stage: Literal["open", "golden", "run"], error: Exception
) -> Skipped:
    hint = error.hint if isinstance(error, EdgeServeError) else None
    if isinstance(error, DeviceLost):  # a server would start it again
        hint = f"update the device's driver: it {'hangs' if error.reason == 'hang' else 'crashes'}"
    return Skipped(subject.label, subject.candidate.device, stage, str(error), hint)
