"""What a server is doing, for people: its models, what each runs on, what failed, what is being done about it.

Plain values, from the same state as the readiness; `page` makes HTML of them.
"""

from __future__ import annotations

import os
import time
from typing import Literal

import msgspec

from edgeserve.chain import Fallback, LinkStatus, Promotion
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.version import __version__


class Step(msgspec.Struct, frozen=True):
    """The last of `count` steps down or up the chain since the model was loaded. `at` is in seconds since
    1970; `message` and `hint` are the device's own, of a step down."""

    count: int
    source: str
    destination: str
    at: float
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    away_s: float | None = None


class CandidateOverview(msgspec.Struct, frozen=True):
    """One candidate of a model's chain. `retry_s`: when it is tried again."""

    candidate: str
    device: str
    precision: str
    isolated: bool
    state: Literal["serving", "standby", "waiting", "out", "closed", "unused"]
    load_ms: float | None = None
    golden_error: float | None = None
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    retry_s: float | None = None


class ModelOverview(msgspec.Struct, frozen=True):
    """One version of one model. `degraded`: it serves, but not on the first candidate of its chain. Requests
    are counted since the server started; `queue` is how many may wait or run, `batching` how they share
    batches, in words."""

    name: str
    version: str
    state: str
    ready: bool
    reason: str = ""
    device: str | None = None
    placement: str | None = None
    since: float | None = None
    rows_that_fit: int = 0
    candidates: tuple[CandidateOverview, ...] = ()
    last_fallback: Step | None = None
    last_recovery: Step | None = None
    answered: int = 0
    failed: dict[str, int] = {}
    pending: int = 0
    queue: int = 0
    degraded: bool = False
    batching: str = ""


class WorkerOverview(msgspec.Struct, frozen=True):
    """One of several processes, by its number. `reason` says why it is not ready."""

    worker: int
    ready: bool
    reason: str = ""


class Overview(msgspec.Struct, frozen=True):
    """The whole of it, as of `time` (seconds since 1970). Where there are several `workers`, states
    and numbers are those of all, candidates as `process` has them. `degraded`: it is ready, and a model is
    degraded."""

    server: str
    version: str
    process: int
    time: float
    up_s: float
    ready: bool
    serving: bool
    models: tuple[ModelOverview, ...]
    workers: tuple[WorkerOverview, ...] = ()
    degraded: bool = False


def overview(repository: ModelRepository, began: float) -> Overview:
    """`began` is when the server started, in seconds since 1970."""
    now = time.time()
    loaded = {(m.name, m.version): m for m in repository.loaded()}
    models = []
    for entry in repository.index():
        model = loaded.get((entry.name, entry.version))
        told = (entry.name, entry.version, entry.state)
        if model is None:
            models.append(ModelOverview(*told, ready=False, reason=entry.reason))
        else:
            models.append(_model(model, *told, reason=entry.reason))
    return Overview(
        server="edgeserve",
        version=__version__,
        process=os.getpid(),
        time=now,
        up_s=now - began,
        ready=repository.ready,
        serving=repository.serving,
        models=tuple(models),
        degraded=repository.ready and any(m.degraded for m in models),
    )


def _model(model: ServedModel, name: str, version: str, state: str, reason: str) -> ModelOverview:
    found = ModelOverview(
        name,
        version,
        state,
        model.ready,
        reason,
        answered=model.metrics.answered,
        failed={kind: n for kind, n in model.metrics.failures.items() if n},
        pending=model.pending(),
        queue=model.settings.queue,
    )
    if model.engine is None:
        return found
    status = model.status
    return msgspec.structs.replace(
        found,
        device=status.candidate.device,
        placement=model.placements.get(status.candidate.label),
        since=status.since,
        degraded=model.ready and status.reason is not None,
        rows_that_fit=status.max_rows,
        batching=model.engine.batching,
        candidates=tuple(_candidate(model, s) for s in model.links),
        last_fallback=_fallback(model.fallbacks),
        last_recovery=_recovery(model.promotions),
    )


def _candidate(model: ServedModel, status: LinkStatus) -> CandidateOverview:
    attempt = status.attempt
    candidate = attempt.candidate
    return CandidateOverview(
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
