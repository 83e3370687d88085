"""The metrics of several worker processes as one: each writes what it has counted, whoever is asked adds up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from prometheus_client import Metric
from prometheus_client.registry import Collector, CollectorRegistry


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


class SharedMetrics(Collector):
    """Adds up this process's metrics and those that its siblings have written into `folder`.

    What a process that has ended counted stays in the sums; what it measured goes.
    """

    def __init__(self, own: CollectorRegistry, folder: Path) -> None:
        self._own = own
        self._folder = folder

    def write(self) -> None:
        """Have the siblings see what this process counts."""
        file = self._folder / f"{os.getpid()}.metrics"
        partial = file.with_suffix(".partial")
        with contextlib.suppress(OSError):  # the folder is gone: the server ends
            partial.write_bytes(msgspec.msgpack.encode(families(self._own)))
            partial.rename(file)

    def collect(self) -> Iterable[Metric]:
        sources = [families(self._own)]
        alive = 1
        for file in sorted(self._folder.glob("*.metrics")):
            if file.stem == str(os.getpid()):
                continue
            try:
                theirs = msgspec.msgpack.decode(file.read_bytes(), type=list[Family])
            except (OSError, msgspec.DecodeError):
                continue
            if is_alive(int(file.stem)):
                alive += 1
            else:
                theirs = [f for f in theirs if f.type != "gauge"]
            sources.append(theirs)
        yield from added(sources)
        workers = Metric("edgeserve_workers", "Worker processes", "gauge")
        workers.add_sample("edgeserve_workers", {}, alive)
        yield workers


def families(registry: CollectorRegistry) -> list[Family]:
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [Sample(s.name, dict(s.labels), s.value) for s in metric.samples],
        )
        for metric in registry.collect()
    ]


def added(sources: list[list[Family]]) -> Iterable[Metric]:
    """One metric for each name: values of the same labels added, but not times of
    creation, nor what is true of the whole machine."""
    metrics: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for source in sources:
        for family in source:
            if family.name not in metrics:
                metrics[family.name] = Metric(family.name, family.what, family.type)
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
    for name, metric in metrics.items():
        for (sample_name, labels), value in values[name].items():
            metric.add_sample(sample_name, dict(labels), value)
        yield metric


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
