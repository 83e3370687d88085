"""The statuses and counts of several workers as one: plain values, no sockets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeVar

import msgspec

from edgeserve.serve.metrics.shared import added
from edgeserve.serve.metrics.statistics import (
    BatchStatistics,
    Duration,
    InferenceStatistics,
    MemoryUsage,
    ModelStatistics,
)
from edgeserve.serve.models.sources import Key
from edgeserve.serve.status.status import ModelStatus, ServerStatus, WorkerStatus
from edgeserve.serve.workers.messages import Report, Total

# Of the states that a version has in several workers, which one it has in all: the first of these.
_WORST: Final = ("LOADING", "UNAVAILABLE", "UNLOADING", "READY")
_Durations = TypeVar("_Durations", InferenceStatistics, BatchStatistics)


def status_of_all(
    statuses: Mapping[int, ServerStatus],
    silent: Mapping[int, str],
    readiness: Literal["all", "any"],
) -> ServerStatus:
    """`statuses` of the workers that answered, by their numbers, and why others did not.

    All of them must be ready for the server to be, and must serve the same models; with `readiness`
    "any" it is enough that one is.
    """
    models = _models(statuses)
    having = {n: set(s.serves) for n, s in statuses.items() if s.serving}
    workers = [WorkerStatus(n, s.ready, "" if s.ready else _why(s)) for n, s in statuses.items()]
    workers += [WorkerStatus(n, False, why) for n, why in silent.items()]
    if readiness == "any":
        ready = any(s.ready for s in statuses.values())
        serves = set().union(*having.values())
    else:
        everywhere = not silent and len(having) == len(statuses)
        serves = set.intersection(*having.values()) if having and everywhere else set()
        apart = {m.key for m in models if m.state == "UNAVAILABLE"}
        agree = not any(apart & had for had in having.values())
        ready = everywhere and agree and all(s.ready for s in statuses.values())
    return ServerStatus(
        ready=ready,
        serving=bool(having),
        models=tuple(models),
        serves=tuple(sorted(serves)),
        workers=tuple(sorted(workers, key=lambda w: w.worker)),
    )


def _why(status: ServerStatus) -> str:
    if not status.serving:
        return "it does not accept requests"
    reasons = [f"{m.name}: {m.reason}" for m in status.models if m.state != "READY" and m.reason]
    return "; ".join(reasons)


def _models(statuses: Mapping[int, ServerStatus]) -> list[ModelStatus]:
    """Every version, with the worst status that a worker reports."""
    found: dict[Key, list[tuple[int, ModelStatus]]] = {}
    for number, status in statuses.items():
        for model in status.models:
            found.setdefault(model.key, []).append((number, model))
    return [_worst(said, everywhere=len(said) == len(statuses)) for said in found.values()]


def _worst(said: list[tuple[int, ModelStatus]], *, everywhere: bool) -> ModelStatus:
    number, worst = min(said, key=lambda pair: (_WORST.index(pair[1].state), _rank(pair[1])))
    ready = everywhere and all(model.ready for _, model in said)
    state, reason = worst.state, worst.reason
    if not everywhere:
        state, reason = "UNAVAILABLE", "not every worker has it"
    elif reason and any(model.state != state for _, model in said):
        reason = f"worker {number}: {reason}"
    return msgspec.structs.replace(
        worst,
        state=state,
        ready=ready,
        reason=reason,
        load_failed=any(model.load_failed for _, model in said),
        degraded=ready and worst.instead_of is not None,
    )


def _rank(model: ModelStatus) -> int:
    if not model.ready:
        return 0
    return 1 if model.instead_of is not None or model.reason else 2


def total(reports: Iterable[Report], silent: Iterable[int] = ()) -> Total:
    """The sum of what workers have counted."""
    every = list(reports)
    return Total(
        added(r.families for r in every),
        added_statistics(one for r in every for one in r.statistics),
        sorted(silent),
    )


def added_statistics(statistics: Iterable[ModelStatistics]) -> list[ModelStatistics]:
    """One entry for each version of each model."""
    found: dict[Key, ModelStatistics] = {}
    for one in statistics:
        key = (one.name, one.version)
        found[key] = _both(found[key], one) if key in found else one
    return list(found.values())


def _both(one: ModelStatistics, other: ModelStatistics) -> ModelStatistics:
    sizes: dict[int, BatchStatistics] = {}
    for batch in (*one.batch_stats, *other.batch_stats):
        known = sizes.get(batch.batch_size)
        sizes[batch.batch_size] = batch if known is None else _added(known, batch)
    return ModelStatistics(
        name=one.name,
        version=one.version,
        last_inference=max(one.last_inference, other.last_inference),
        inference_count=one.inference_count + other.inference_count,
        execution_count=one.execution_count + other.execution_count,
        inference_stats=_added(one.inference_stats, other.inference_stats),
        batch_stats=tuple(sizes[size] for size in sorted(sizes)),
        memory_usage=_memory(one.memory_usage, other.memory_usage),
        response_stats=one.response_stats,
    )


def _added(one: _Durations, other: _Durations) -> _Durations:
    """With the durations of both."""
    sums = {}
    for name in one.__struct_fields__:
        mine, its = getattr(one, name), getattr(other, name)
        if isinstance(mine, Duration):
            sums[name] = Duration(mine.count + its.count, mine.ns + its.ns)
    return msgspec.structs.replace(one, **sums)


def _memory(
    one: tuple[MemoryUsage, ...], other: tuple[MemoryUsage, ...]
) -> tuple[MemoryUsage, ...]:
    sizes: dict[tuple[str, int], int] = {}
    for usage in (*one, *other):
        key = (usage.type, usage.id)
        sizes[key] = sizes.get(key, 0) + usage.byte_size
    return tuple(MemoryUsage(*key, size) for key, size in sizes.items())


class Departed:
    """The counts of workers that have ended, so that no sum decreases when one ends."""

    def __init__(self) -> None:
        self._report = Report([], [])

    def add(self, report: Report) -> None:
        """Add the last report of a worker that has ended; its gauges are dropped."""
        families = [f for f in report.families if f.type != "gauge"]
        statistics = [msgspec.structs.replace(s, memory_usage=()) for s in report.statistics]
        both = total([self._report, Report(families, statistics)])
        self._report = Report(both.families, both.statistics)

    def beside(self, living: Iterable[Report]) -> Report:
        """Their counts; statistics only for models that a living worker has, if any worker has reported."""
        there = {(s.name, s.version) for report in living for s in report.statistics}
        if not there:
            return self._report
        shown = [s for s in self._report.statistics if (s.name, s.version) in there]
        return Report(self._report.families, shown)
