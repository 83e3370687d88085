"""What only the status page tells of a model: its candidates, its last steps along the chain, its numbers."""

from __future__ import annotations

import msgspec

from edgeserve.chain import Fallback, LinkStatus, Promotion
from edgeserve.serve.metrics.server_counts import RequestCounts
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.status.status import CandidateStatus, ModelStatus, Step


def detailed(status: ModelStatus, model: ServedModel, processes: int) -> ModelStatus:
    """`status` with what is known of `model` in this process, one of so many."""
    manifest = model.bundle.manifest
    status = msgspec.structs.replace(
        status,
        queue=model.settings.queue * processes,
        task=manifest.task.kind,
        takes_images=model.images is not None,
        size_bytes=manifest.variant(model.candidate.variant).size_bytes,
    )
    if model.engine is None:
        return status
    return msgspec.structs.replace(
        status,
        placement=model.placements.get(model.candidate.label),
        candidates=tuple(_candidate(model, s) for s in model.links),
        last_fallback=_fallback(model.fallbacks),
        last_recovery=_recovery(model.promotions),
    )


def with_requests(status: ModelStatus, counted: RequestCounts | None) -> ModelStatus:
    """`status` with the numbers of its requests, where they are known."""
    if counted is None:
        return status
    return msgspec.structs.replace(
        status, answered=counted.answered, failed=counted.failed, pending=counted.pending
    )


def _candidate(model: ServedModel, status: LinkStatus) -> CandidateStatus:
    attempt = status.attempt
    candidate = attempt.candidate
    return CandidateStatus(
        candidate=candidate.label,
        device=candidate.device,
        precision=model.bundle.manifest.variant(candidate.variant).precision,
        isolated=attempt.isolated,
        state=status.state,
        load_ms=attempt.load_ms,
        golden_error=attempt.golden_error,
        reason=attempt.reason,
        message=attempt.error,
        hint=attempt.hint,
        retry_s=status.retry_s,
    )


def _fallback(steps: list[Fallback]) -> Step | None:
    if not steps:
        return None
    last = steps[-1]
    return Step(
        len(steps),
        last.source.label,
        last.destination.label,
        last.at,
        reason=last.reason,
        message=last.message,
        hint=last.hint,
    )


def _recovery(steps: list[Promotion]) -> Step | None:
    if not steps:
        return None
    last = steps[-1]
    return Step(len(steps), last.source.label, last.destination.label, last.at, away_s=last.away_s)
