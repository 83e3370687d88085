"""The metrics of several workers as one: each worker reads its own, the supervisor adds them up, a worker renders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import msgspec
from prometheus_client import Metric
from prometheus_client.registry import Collector

from edgeserve.serve.metrics.server_counts import MEMORY, REQUEST_TIME, RequestCounts


class Sample(msgspec.Struct, frozen=True):
    """One value of one metric."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True):
    """One metric with all its values."""

    name: str
    type: str
    what: str
    samples: list[Sample]


def families(content: Collector) -> list[Family]:
    """The metrics as data."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [Sample(s.name, dict(s.labels), s.value) for s in metric.samples],
        )
        for metric in content.collect()
    ]


def added(sources: Iterable[list[Family]]) -> list[Family]:
    """One family for each name: values of the same labels added, but not times of creation, nor what is
    true of the whole machine."""
    first: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for source in sources:
        for family in source:
            first.setdefault(family.name, family)
            into = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = into.get(key)
                if before is None:
                    into[key] = sample.value
                elif sample.name.endswith("_created"):
                    into[key] = min(before, sample.value)
                elif sample.name.endswith("_info") or sample.name.startswith("nv_cpu_"):
                    into[key] = max(before, sample.value)
                else:
                    into[key] = before + sample.value
    return [
        msgspec.structs.replace(
            family, samples=[Sample(n, dict(labels), v) for (n, labels), v in values[name].items()]
        )
        for name, family in first.items()
    ]


def requests_of(content: Iterable[Family]) -> dict[tuple[str, str], RequestCounts]:
    """The requests of each version, by name and version."""
    answered: Counter[tuple[str, str]] = Counter()
    pending: Counter[tuple[str, str]] = Counter()
    failed: dict[tuple[str, str], dict[str, int]] = {}
    within: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for sample in (s for family in content for s in family.samples):
        key = (sample.labels.get("model", ""), sample.labels.get("version", ""))
        value = int(sample.value)
        if sample.name == "edgeserve_requests_total":
            answered[key] = value
        elif sample.name == "edgeserve_pending_requests":
            pending[key] = value
        elif sample.name == "edgeserve_request_failures_total" and value:
            failed.setdefault(key, {})[sample.labels["reason"]] = value
        elif sample.name == f"{REQUEST_TIME}_bucket":
            within.setdefault(key, []).append((float(sample.labels["le"]), value))
    return {
        key: RequestCounts(
            answered[key], failed.get(key, {}), pending[key], _apart(within.get(key, []))
        )
        for key in {*answered, *pending, *failed}
    }


def _apart(within: list[tuple[float, int]]) -> tuple[int, ...]:
    """The counts between bounds, from those up to each bound."""
    counts = [count for _, count in sorted(within)]
    return tuple(count - before for before, count in pairwise([0, *counts]))


def memory_of(content: Iterable[Family]) -> int:
    """Resident memory in bytes."""
    return int(sum(s.value for family in content for s in family.samples if s.name == MEMORY))


class Shown(Collector):
    """Families as a registry's content, to be rendered."""

    def __init__(self, content: list[Family]) -> None:
        self._content = content

    def collect(self) -> Iterable[Metric]:
        for family in self._content:
            metric = Metric(family.name, family.what, family.type)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric
