"""Metrics of models that could not be loaded: which versions are in that state, and how often it happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class LoadMetrics(Collector):
    """`states` gives every known version (name, version) and whether its last load failed; `failures` counts
    failed loads by the models' names and never goes down."""

    def __init__(
        self,
        states: Callable[[], Mapping[tuple[str, str], bool]],
        failures: Callable[[], Mapping[str, int]],
    ) -> None:
        self._states = states
        self._failures = failures

    def collect(self) -> Iterable[Metric]:
        failed = GaugeMetricFamily(
            "edgeserve_version_failed",
            "1 for a version whose last load failed",
            labels=["model", "version"],
        )
        for labels, is_failed in self._states().items():
            failed.add_metric(labels, float(is_failed))
        yield failed
        counted = CounterMetricFamily(
            "edgeserve_model_load_failures", "Loads of a model that failed", labels=["model"]
        )
        for name, count in self._failures().items():
            counted.add_metric([name], count)
        yield counted
