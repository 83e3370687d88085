"""What runs where on this machine: each candidate of a bundle is opened, in a process of its own, and asked."""

from __future__ import annotations

import msgspec

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain import ChainOptions, check_golden, open_session
from edgeserve.errors import BundleError, EdgeServeError
from edgeserve.runtimes import Placement
from edgeserve.runtimes.guarded import asked_placement


class PlacedHere(msgspec.Struct, frozen=True):
    """One candidate: its placement here, or the `problem` that it does not open with. `golden_error` is
    the relative RMS error on the golden samples, within the tolerance."""

    candidate: str
    placement: Placement | None = None
    golden_error: float | None = None
    problem: str | None = None
    hint: str | None = None


def placements_here(bundle: Bundle) -> tuple[PlacedHere, ...]:
    """In the order of the chain. Raises BundleError for a damaged bundle."""
    return tuple(_placed(bundle, candidate) for candidate in bundle.manifest.chain)


def _placed(bundle: Bundle, candidate: Candidate) -> PlacedHere:
    label = candidate.label
    try:
        session = open_session(bundle, candidate, ChainOptions(isolate="always"))
        try:
            error = check_golden(bundle, session, candidate.variant)
            return PlacedHere(label, asked_placement(session), error)
        finally:
            session.close()
    except BundleError:
        raise
    except (EdgeServeError, ImportError) as problem:
        hint = problem.hint if isinstance(problem, EdgeServeError) else None
        return PlacedHere(label, problem=str(problem), hint=hint)
