"""What /v2/health/ready says of a server's models."""

from __future__ import annotations

from typing import Any

from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.repository import ModelRepository


def conditions(repository: ModelRepository) -> dict[str, dict[str, Any]]:
    """By the models' names: whether each is ready, what serves it, and why it is not. `failed_versions` are
    those whose last load failed, with the reason, whatever serves meanwhile."""
    models: dict[str, dict[str, Any]] = {}
    for model in sorted(repository.loaded(), key=lambda m: int(m.version)):
        models[model.name] = {"version": model.version, **_condition(model)}
    failed = repository.load_states()
    for entry in repository.index():
        known = models.setdefault(entry.name, {"version": entry.version, "ready": False})
        if entry.reason and known["version"] == entry.version:
            known["reason"] = entry.reason
        if failed.get((entry.name, entry.version)):
            known.setdefault("failed_versions", {})[entry.version] = entry.reason
    return models


def where(model: ServedModel) -> dict[str, str]:
    """What serves a model."""
    candidate = model.candidate
    return {
        "device": candidate.device,
        "runtime": candidate.runtime,
        "variant": candidate.variant,
    }


def _condition(model: ServedModel) -> dict[str, Any]:
    """What serves, since when (seconds since 1970), and why the first candidate does not."""
    if model.engine is None:
        return {"ready": model.ready, **where(model), "reason": model.reason}
    status = model.status
    condition: dict[str, Any] = {"ready": model.ready, **where(model), "since": status.since}
    condition["batching"] = model.engine.batching
    if status.max_rows:
        condition["rows_that_fit"] = status.max_rows
    if status.reason is not None:
        first = {"candidate": status.first.label, "reason": status.reason, "hint": status.hint}
        condition["instead_of"] = {**first, "retry_s": status.retry_s}
    return condition
