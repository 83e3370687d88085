"""What was asked to be measured, and everything measured of one candidate."""

from __future__ import annotations

import msgspec

from edgeserve.bench.coldstart import ColdStart
from edgeserve.bench.statistics import Interval, Summary
from edgeserve.bench.throughput import Offline
from edgeserve.bundle import Precision
from edgeserve.bundle.manifest import Option


class BenchSettings(msgspec.Struct, frozen=True):
    """What was asked for.

    `duration_s` is the time of single stream for each candidate, half of that for throughput; `samples` the
    least number of calls for each; `processes` the fresh ones for load time and memory; `against` the path
    of the source model to compare with; `inject` are faults, for tests.
    """

    device: str | None = None
    variant: str | None = None
    threads: int = 0
    duration_s: float = 5.0
    samples: int = 64
    processes: int = 3
    against: str | None = None
    inject: tuple[str, ...] = ()


class Requested(msgspec.Struct, frozen=True):
    """What the chain asks for. `threads` is 0 where the engine chooses."""

    variant: str
    runtime: str
    device: str
    precision: Precision
    threads: int
    static_shapes: bool
    options: dict[str, Option]


class Engaged(msgspec.Struct, frozen=True):
    """What the engine does with it, read from it after compiling: shares of operations and of
    multiply-accumulates by device (the latter empty where not known), operators left on the CPU, the
    precision it computes in, convolutions and matrix products and those of them in int8. `max_batch` is
    the most samples it takes in one piece (0: no batches)."""

    runtime_version: str | None
    shares: dict[str, float]
    inference_precision: str
    compute_ops: int
    int8_compute_ops: int
    concurrency: int
    max_batch: int
    mac_shares: dict[str, float] = {}
    left_on_cpu: dict[str, int] = {}
    placement: str = ""


class Latency(msgspec.Struct, frozen=True):
    """Single stream, in ms. `p50_interval` is its 95 % confidence interval, `drift` by how much the end
    was slower than the beginning, as a share."""

    summary: Summary
    p50_interval: Interval | None
    warm_up: int
    settled: bool
    drift: float


class Measurement(msgspec.Struct, frozen=True):
    """Everything measured of one candidate. Speed-ups are over the report's `baseline`, in the same
    interleaved run; `recorded_speedup` is what convert measured, then and there."""

    label: str
    requested: Requested
    engaged: Engaged
    size_bytes: int
    golden_error: float
    cold_start: ColdStart
    latency: Latency
    offline: Offline
    speedup: Interval | None = None
    throughput_speedup: float | None = None
    recorded_speedup: float | None = None
