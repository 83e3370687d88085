"""How a server, its models, their candidates and its workers are now: one set of plain values, of which the readiness
document, the index, the status page and its JSON are renderings."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from edgeserve.chain import ChainStatus
from edgeserve.serve.metrics.server_counts import Counts
from edgeserve.serve.models.entries import Entry, State
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.sources import Key
from edgeserve.version import __version__


class Step(msgspec.Struct, frozen=True):
    """The last of `count` steps down or up the chain since the model was loaded. `at` is in seconds since 1970;
    `message` and `hint` are the device's own, for a step down; `away_s` is how long it was away, for a step up."""

    count: int
    source: str
    destination: str
    at: float
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    away_s: float | None = None


class CandidateStatus(msgspec.Struct, frozen=True):
    """One candidate of a model's chain. `retry_s`: seconds until it is tried again."""

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


class InsteadOf(msgspec.Struct, frozen=True):
    """The first candidate, where another one serves, and why. `retry_s`: seconds until it is tried again."""

    candidate: str
    reason: str
    hint: str | None = None
    retry_s: float | None = None


class ModelStatus(msgspec.Struct, frozen=True):
    """One version of one model. `state` is the word of the model repository extension; `reason` says why the version
    is not READY, or not in memory; `load_failed` whether its last load failed, whatever serves meanwhile.

    `since` is in seconds since 1970. Without a `device` no model was opened. From `placement` on, the fields are
    filled for the status page only: requests are counted since the server started, `queue` is how many may wait or
    run; `size_bytes` is the size of the files of the variant that serves; `takes_images`: it takes photographs.
    """

    name: str
    version: str
    state: State
    ready: bool = False
    reason: str = ""
    load_failed: bool = False
    device: str | None = None
    runtime: str | None = None
    variant: str | None = None
    since: float | None = None
    batching: str = ""
    rows_that_fit: int = 0
    instead_of: InsteadOf | None = None
    placement: str | None = None
    candidates: tuple[CandidateStatus, ...] = ()
    last_fallback: Step | None = None
    last_recovery: Step | None = None
    answered: int = 0
    failed: dict[str, int] = {}
    pending: int = 0
    queue: int = 0
    degraded: bool = False
    size_bytes: int = 0
    task: str | None = None
    takes_images: bool = False

    @property
    def key(self) -> Key:
        return self.name, self.version


class WorkerStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker, by its number. `reason` says why it is not ready."""

    worker: int
    ready: bool
    reason: str = ""


class ServerStatus(msgspec.Struct, frozen=True):
    """The whole server. `serving`: it has started, and does not drain. `serves` are the versions that answer,
    whichever worker is asked.

    The fields from `server` on are filled for the status page only: `process` is who answered, `time` is in seconds
    since 1970; `degraded`: it is ready, and a model is degraded; `memory_bytes` is the resident memory of all processes.
    """

    ready: bool
    serving: bool
    models: tuple[ModelStatus, ...] = ()
    serves: tuple[Key, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    server: str = "edgeserve"
    version: str = __version__
    process: int = 0
    time: float = 0.0
    up_s: float = 0.0
    degraded: bool = False
    memory_bytes: int = 0


class Observed(Protocol):
    """A server that can be asked how it is, and what it has counted."""

    async def status(self) -> ServerStatus:
        """Never raises: while the workers cannot be asked, the server is not ready."""

    async def counts(self) -> Counts:
        """Raises EnvironmentProblem while the workers cannot be asked."""


def server_status(repository: ModelRepository) -> ServerStatus:
    """The status of this process."""
    models = tuple(model_status(entry) for entry in repository.entries())
    return ServerStatus(
        repository.ready, repository.serving, models, tuple(m.key for m in models if m.ready)
    )


def model_status(entry: Entry) -> ModelStatus:
    """The status of one version, as far as readiness and the index tell it."""
    model = entry.model
    if model is None or model.engine is None:
        found = ModelStatus(
            *entry.source.key,
            entry.shown_state,
            reason=entry.reason,
            load_failed=entry.failed,
        )
        if model is None:
            return found
        return msgspec.structs.replace(found, ready=model.ready, **where(model))
    candidate, status, ready = model.candidate, model.status, model.ready
    instead_of = _instead_of(status)
    return ModelStatus(
        *entry.source.key,
        entry.shown_state,
        ready,
        entry.reason,
        entry.failed,
        candidate.device,
        candidate.runtime,
        candidate.variant,
        status.since,
        model.engine.batching,
        status.max_rows,
        instead_of,
        degraded=ready and instead_of is not None,
    )


def where(model: ServedModel) -> dict[str, str]:
    """What serves a model."""
    candidate = model.candidate
    return {
        "device": candidate.device,
        "runtime": candidate.runtime,
        "variant": candidate.variant,
    }


def _instead_of(status: ChainStatus) -> InsteadOf | None:
    if status.reason is None:
        return None
    return InsteadOf(status.first.label, status.reason, status.hint, status.retry_s)


class ModelReadiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model in /v2/health/ready: its newest version that was opened, and why others failed, by version."""

    version: str
    ready: bool
    device: str | None = None
    runtime: str | None = None
    variant: str | None = None
    since: float | None = None
    batching: str = ""
    rows_that_fit: int = 0
    instead_of: InsteadOf | None = None
    reason: str = ""
    failed_versions: dict[str, str] = {}


def readiness(status: ServerStatus) -> dict[str, ModelReadiness]:
    """What /v2/health/ready says of each model, by name."""
    shown: dict[str, ModelStatus] = {}
    failed: dict[str, dict[str, str]] = {}
    for model in status.models:
        known = shown.get(model.name)
        if known is None or _age(model) > _age(known):
            shown[model.name] = model
        if model.load_failed:
            failed.setdefault(model.name, {})[model.version] = model.reason
    fields = [f for f in ModelReadiness.__struct_fields__ if f != "failed_versions"]
    return {
        name: ModelReadiness(
            **{f: getattr(model, f) for f in fields}, failed_versions=failed.get(name, {})
        )
        for name, model in shown.items()
    }


def _age(model: ModelStatus) -> int:
    """Larger for newer versions; 0 for all that were not opened."""
    return 0 if model.device is None else int(model.version)
