"""The result of a benchmark: what every export is made from (`exports/`)."""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.bench.environment import Environment
from edgeserve.bench.measurement import BenchSettings, Measurement
from edgeserve.bench.subjects import Skipped
from edgeserve.bench.warnings import BenchWarning

SCHEMA: Final = "edgeserve-bench/1"


class BenchReport(msgspec.Struct, frozen=True):
    """A benchmark of one bundle on one machine."""

    schema: str
    bundle: str
    name: str
    created: str
    settings: BenchSettings
    environment: Environment
    golden_samples: int
    baseline: str | None
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[BenchWarning, ...]
