"""The last proof: what was chosen is opened once more and reproduces the golden samples, as it must to serve.

The tolerances are those that the bundle will have, so that nothing is written that does not serve here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgeserve.bundle import Variant
from edgeserve.chain import golden_batches
from edgeserve.chain.golden import deviation
from edgeserve.conversion.search.choose import Bounds, Trial, Verdict
from edgeserve.conversion.search.prove import Proof
from edgeserve.conversion.search.timing import Subject, open_subject
from edgeserve.conversion.tolerance import tolerances
from edgeserve.errors import EdgeServeError
from edgeserve.tensors import Interface

Decide = Callable[[Sequence[Trial]], list[Verdict]]


def with_tolerances(
    variant: Variant,
    verdicts: Sequence[Verdict],
    proof: Proof,
    interface: Interface,
    bounds: Bounds,
) -> Variant:
    """Add what was measured, and what is tolerated on golden samples because of it."""
    trials = [v.trial for v in verdicts if v.chosen and v.trial.variant == variant.id]
    measured = tuple(t.measured for t in trials if t.measured is not None)
    seen = [(s.fidelity, t.golden) for t in trials if (s := t.measured or t.elsewhere) and t.golden]
    if not seen:
        return msgspec.structs.replace(variant, measured=measured)
    worst, golden = tolerances(
        variant.precision,
        seen[0][0],
        [errors for _, errors in seen],
        golden_batches(interface, proof.golden_inputs),
        golden_batches(interface, proof.golden_outputs),
        bounds,
    )
    return msgspec.structs.replace(
        variant, measured=measured, golden=golden, golden_tolerance=worst
    )


def confirmed(
    trials: Sequence[Trial],
    decide: Decide,
    subject_of: Callable[[Trial], Subject],
    proof: Proof,
    interface: Interface,
    bounds: Bounds,
    threads: int,
) -> list[Verdict]:
    """The verdicts, once all that is chosen and can be opened here reproduces the golden samples. What does
    not has a problem, and the next best is chosen."""
    remaining = list(trials)
    passed: set[tuple[int, str]] = set()
    while True:
        verdicts = decide(remaining)
        fresh = [
            v.trial
            for v in verdicts
            if v.chosen
            and v.trial.measured is not None
            and (v.trial.entry, v.trial.variant) not in passed
        ]
        if not fresh:
            return verdicts
        for trial in fresh:
            passed.add((trial.entry, trial.variant))
            subject = subject_of(trial)
            variant = with_tolerances(subject.variant, verdicts, proof, interface, bounds)
            problem = _problem(subject, variant, proof, interface, threads)
            if problem is not None:
                place = remaining.index(trial)
                remaining[place] = msgspec.structs.replace(trial, problem=problem)


def _problem(
    subject: Subject, variant: Variant, proof: Proof, interface: Interface, threads: int
) -> str | None:
    """Why a candidate would not serve, or None."""
    requests = golden_batches(interface, proof.golden_inputs)
    want = golden_batches(interface, proof.golden_outputs)
    trial, session = open_subject(subject, threads)
    if session is None:
        return trial.problem or trial.unverified
    try:
        got = [session.run(request) for request in requests]
    except EdgeServeError as error:
        return f"opened again, it fails: {error}"
    finally:
        session.close()
    found = deviation(variant, interface, requests, want, got)
    return None if found.is_fine else f"opened again, it answers differently: {found.cause}"
