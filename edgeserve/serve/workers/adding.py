"""What several workers say of themselves, as one. Plain values, no sockets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from edgeserve.serve.metrics.shared import added
from edgeserve.serve.metrics.statistics import (
    BatchStatistics,
    Duration,
    InferenceStatistics,
    MemoryUsage,
    ModelStatistics,
)
from edgeserve.serve.models.entries import IndexEntry
from edgeserve.serve.workers.messages import Counts, Key, Report, Standing, State, WorkerState

# Of the states that a version has in several workers, which one it has in all: the first of these.
_WORST: Final = ("LOADING", "UNAVAILABLE", "UNLOADING", "READY")


def standing(
    states: Mapping[int, State],
    silent: Mapping[int, str],
    readiness: Literal["all", "any"],
) -> Standing:
    """`states` of the workers that answered, by their numbers, and why others did not.

    All of them must be ready for the server to be, and must serve the same models; with `readiness`
    "any" it is enough that one is.
    """
    index = _index(states)
    having = {n: {(e.name, e.version) for e in s.index if e.state == "READY"}
              for n, s in states.items() if s.serving}  # fmt: skip
    workers = [WorkerState(n, s.ready, "" if s.ready else _why(s)) for n, s in states.items()]
    workers += [WorkerState(n, False, why) for n, why in silent.items()]
    if readiness == "any":
        ready = any(s.ready for s in states.values())
        serves = set().union(*having.values())
    else:
        everywhere = not silent and len(having) == len(states)
        serves = set.intersection(*having.values()) if having and everywhere else set()
        apart = {e for e in index if e.state == "UNAVAILABLE"}
        agree = not any((e.name, e.version) in had for e in apart for had in having.values())
        ready = everywhere and agree and all(s.ready for s in states.values())
    return Standing(
        ready=ready,
        index=index,
        models=_models(states, index),
        serves=sorted(serves),
        workers=sorted(workers, key=lambda w: w.worker),
    )


def _why(state: State) -> str:
    if not state.serving:
        return "it does not take requests"
    reasons = [f"{e.name}: {e.reason}" for e in state.index if e.state != "READY" and e.reason]
    return "; ".join(reasons)


def _index(states: Mapping[int, State]) -> list[IndexEntry]:
    """Every version, in one state for all workers."""
    worst: dict[Key, IndexEntry] = {}
    seen: dict[Key, int] = {}
    for number, state in states.items():
        for entry in state.index:
            key = (entry.name, entry.version)
            seen[key] = seen.get(key, 0) + 1
            known = worst.get(key)
            if known is None or _WORST.index(entry.state) < _WORST.index(known.state):
                reason = entry.reason
                if known is not None and reason:
                    reason = f"worker {number}: {reason}"
                worst[key] = msgspec.structs.replace(entry, reason=reason)
    return [
        entry
        if seen[key] == len(states)
        else IndexEntry(*key, "UNAVAILABLE", "not every worker has it")
        for key, entry in worst.items()
    ]


def _models(states: Mapping[int, State], index: list[IndexEntry]) -> dict[str, dict[str, Any]]:
    """What the health document says of each model: the worst that a worker says."""
    worst: dict[str, dict[str, Any]] = {}
    for state in states.values():
        for name, condition in state.models.items():
            known = worst.get(name)
            if known is None or _rank(condition) < _rank(known):
                worst[name] = condition
    for entry in index:
        said = worst.get(entry.name, {})
        its = said.get("version", entry.version) == entry.version
        if its and entry.state == "UNAVAILABLE" and said.get("ready"):
            worst[entry.name] = {**said, "ready": False, "reason": entry.reason}
    return worst


def _rank(condition: dict[str, Any]) -> int:
    if not condition.get("ready"):
        return 0
    return 1 if "instead_of" in condition or condition.get("reason") else 2


def counts(reports: Iterable[Report], silent: Iterable[int] = ()) -> Counts:
    """The sum of what workers have counted."""
    together = list(reports)
    return Counts(
        added(r.families for r in together),
        added_statistics(one for r in together for one in r.statistics),
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
        sizes[batch.batch_size] = batch if known is None else _batches(known, batch)
    return ModelStatistics(
        name=one.name,
        version=one.version,
        last_inference=max(one.last_inference, other.last_inference),
        inference_count=one.inference_count + other.inference_count,
        execution_count=one.execution_count + other.execution_count,
        inference_stats=_inferences(one.inference_stats, other.inference_stats),
        batch_stats=tuple(sizes[size] for size in sorted(sizes)),
        memory_usage=_memory(one.memory_usage, other.memory_usage),
        response_stats=one.response_stats,
    )


def _durations(one: Any, other: Any, names: Iterable[str]) -> dict[str, Duration]:
    found = {}
    for name in names:
        a, b = getattr(one, name), getattr(other, name)
        found[name] = Duration(a.count + b.count, a.ns + b.ns)
    return found


def _inferences(one: InferenceStatistics, other: InferenceStatistics) -> InferenceStatistics:
    return InferenceStatistics(**_durations(one, other, InferenceStatistics.__struct_fields__))


def _batches(one: BatchStatistics, other: BatchStatistics) -> BatchStatistics:
    names = ("compute_input", "compute_infer", "compute_output")
    return BatchStatistics(one.batch_size, **_durations(one, other, names))


def _memory(
    one: tuple[MemoryUsage, ...], other: tuple[MemoryUsage, ...]
) -> tuple[MemoryUsage, ...]:
    sizes: dict[tuple[str, int], int] = {}
    for usage in (*one, *other):
        key = (usage.type, usage.id)
        sizes[key] = sizes.get(key, 0) + usage.byte_size
    return tuple(MemoryUsage(*key, size) for key, size in sizes.items())


class Departed:
    """What workers that have ended had counted, so that no sum becomes smaller by an end."""

    def __init__(self) -> None:
        self._report = Report([], [])

    def add(self, report: Report) -> None:
        """Of one more. What it measured of itself goes with it."""
        families = [f for f in report.families if f.type != "gauge"]
        statistics = [msgspec.structs.replace(s, memory_usage=()) for s in report.statistics]
        both = counts([self._report, Report(families, statistics)])
        self._report = Report(both.families, both.statistics)

    def beside(self, living: Iterable[Report]) -> Report:
        """What is left of them; statistics only of the models that the living have, if any has said so."""
        there = {(s.name, s.version) for report in living for s in report.statistics}
        if not there:
            return self._report
        shown = [s for s in self._report.statistics if (s.name, s.version) in there]
        return Report(self._report.families, shown)
