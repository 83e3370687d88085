"""The last proof: what was chosen is opened once more and reproduces the golden samples, as it must to serve.

The tolerances are those that the bundle will have, so that nothing is written that does not serve here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgeserve.bundle import Variant
from edgeserve.chain import golden_batches
from edgeserve.chain.golden import deviation
from edgeserve.conversion.job import Job
from edgeserve.conversion.search.choose import Decision, VariantTrial
from edgeserve.conversion.search.prove import Proof
from edgeserve.conversion.search.search import Found
from edgeserve.conversion.search.timing import Contender, open_contender
from edgeserve.conversion.search.tolerance import tolerances
from edgeserve.errors import EdgeServeError

Decide = Callable[[Sequence[VariantTrial]], list[Decision]]


def with_tolerances(
    job: Job, variant: Variant, decisions: Sequence[Decision], proof: Proof
) -> Variant:
    """Add what was measured, and what is tolerated on golden samples because of it."""
    trials = [v.trial for v in decisions if v.chosen and v.trial.variant == variant.id]
    measured = tuple(t.measured for t in trials if t.measured is not None)
    seen = [(s.fidelity, t.golden) for t in trials if (s := t.measured or t.elsewhere) and t.golden]
    if not seen:
        return msgspec.structs.replace(variant, measured=measured)
    worst, golden = tolerances(
        variant.precision,
        seen[0][0],
        [errors for _, errors in seen],
        golden_batches(job.interface, proof.golden_inputs),
        golden_batches(job.interface, proof.golden_outputs),
        job.bounds,
    )
    return msgspec.structs.replace(
        variant, measured=measured, golden=golden, golden_tolerance=worst
    )


def confirmed(
    job: Job, found: Found, decide: Decide, contender_of: Callable[[VariantTrial], Contender]
) -> list[Decision]:
    """The decisions, once all that is chosen and can be opened here reproduces the golden samples. What does
    not has a problem, and the next best is chosen."""
    remaining = list(found.trials)
    passed: set[tuple[int, str]] = set()
    while True:
        decisions = decide(remaining)
        fresh = [
            v.trial
            for v in decisions
            if v.chosen
            and v.trial.measured is not None
            and (v.trial.entry, v.trial.variant) not in passed
        ]
        if not fresh:
            return decisions
        for trial in fresh:
            passed.add((trial.entry, trial.variant))
            contender = contender_of(trial)
            variant = with_tolerances(job, contender.variant, decisions, found.proof)
            problem = _problem(job, contender, variant, found.proof)
            if problem is not None:
                place = remaining.index(trial)
                remaining[place] = msgspec.structs.replace(trial, problem=problem)


def _problem(job: Job, contender: Contender, variant: Variant, proof: Proof) -> str | None:
    """Why a candidate would not serve, or None."""
    requests = golden_batches(job.interface, proof.golden_inputs)
    want = golden_batches(job.interface, proof.golden_outputs)
    trial, session = open_contender(contender, job.threads)
    if session is None:
        return trial.problem or trial.unverified
    try:
        got = [session.run(request) for request in requests]
    except EdgeServeError as error:
        return f"opened again, it fails: {error}"
    finally:
        session.close()
    found = deviation(variant, job.interface, requests, want, got)
    return None if found.is_fine else f"opened again, it answers differently: {found.cause}"
