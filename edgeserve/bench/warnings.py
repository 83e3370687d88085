"""Every warning a benchmark can give: when, what it means, what to do about it. All in this file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from edgeserve.bench.environment import Environment
from edgeserve.bench.measurement import Measurement
from edgeserve.devices.names import device_kind

Kind = Literal[
    "too_few_samples",
    "noisy",
    "long_tail",
    "not_settled",
    "drift",
    "timer",
    "high_load",
    "stolen_time",
    "on_battery",
    "batches_not_used",
    "not_on_device",
    "int8_not_engaged",
    "way_not_measured",
    "no_baseline",
]

NOISY_SPREAD: Final = 0.15
TAIL_RATIO: Final = 2.0
DRIFT_SHARE: Final = 0.10
TIMER_SHARE: Final = 0.02
BUSY_SHARE: Final = 0.5  # of the cores, before the benchmark began
STOLEN_SHARE: Final = 0.01

_QUIET: Final = "close what else runs, or measure longer (--duration)"


class BenchWarning(msgspec.Struct, frozen=True):
    """`subject` is a candidate's label, or None for the whole run."""

    kind: Kind
    message: str
    advice: str
    subject: str | None = None


def environment_warnings(environment: Environment) -> Iterator[BenchWarning]:
    load, cores = environment.load_average, environment.all_cores
    if load is not None and load > BUSY_SHARE * cores:
        yield BenchWarning(
            "high_load",
            f"the machine was busy before the benchmark began: load {load:.1f} on {cores} cores",
            "close what else runs; ratios of interleaved candidates hold, times alone do not",
        )
    if environment.stolen is not None and environment.stolen > STOLEN_SHARE:
        yield BenchWarning(
            "stolen_time",
            f"the hypervisor gave {100 * environment.stolen:.0f} % of the time to other machines",
            "trust ratios, not times; for times use a machine of your own",
        )
    if environment.on_battery:
        yield BenchWarning(
            "on_battery",
            "the machine runs on its battery and may slow down",
            "plug it in, unless this is how it will run",
        )


def measurement_warnings(found: Measurement, environment: Environment) -> Iterator[BenchWarning]:
    """Warnings about one candidate."""
    yield from _timing_warnings(found, environment)
    yield from _engagement_warnings(found)
    for failed in found.offline.failed:
        yield BenchWarning(
            "way_not_measured",
            f"throughput with {failed.way.describe()} was not measured: {failed.reason}",
            "give it more time (--duration)"
            if failed.kind == "slow"
            else "the other ways hold; when batches fail, convert again: the bundle promises them",
            found.label,
        )


def baseline_warnings(
    baseline: str | None, measured: Sequence[Measurement]
) -> Iterator[BenchWarning]:
    if baseline is None and measured:
        yield BenchWarning(
            "no_baseline",
            "nothing was measured in fp32, so no speed-ups are reported",
            "--against MODEL.onnx measures the source beside the candidates",
        )


def _timing_warnings(found: Measurement, environment: Environment) -> Iterator[BenchWarning]:
    latency, label = found.latency, found.label
    summary = latency.summary
    missing = [f"p{r}" for r in (90, 99) if getattr(summary, f"p{r}") is None]
    if missing:
        yield BenchWarning(
            "too_few_samples",
            f"{' and '.join(missing)} not reported from {summary.samples} samples",
            "--samples 662 (p90 needs 64, p99 needs 662)",
            label,
        )
    if summary.spread > NOISY_SPREAD:
        yield BenchWarning(
            "noisy", f"times vary: the middle half spans {_percent(summary.spread)} of the median",
            _QUIET, label,
        )  # fmt: skip
    if summary.p99 is not None and summary.p99 > TAIL_RATIO * summary.p50:
        yield BenchWarning(
            "long_tail",
            f"one call in a hundred takes {summary.p99 / summary.p50:.1f} times the median or longer",
            "something interrupts the machine now and then; budget for p99, not for p50",
            label,
        )
    if not latency.settled:
        yield BenchWarning(
            "not_settled",
            f"still getting faster after {latency.warm_up} warm-up calls",
            "measure longer (--duration); the first calls of a server will be slow too",
            label,
        )
    if abs(latency.drift) > DRIFT_SHARE:
        what = "slower" if latency.drift > 0 else "faster"
        yield BenchWarning(
            "drift",
            f"became {_percent(abs(latency.drift))} {what} while it was measured",
            "the machine heats up or clocks down: cool it, or measure longer to see where it ends"
            if latency.drift > 0
            else _QUIET,
            label,
        )
    if environment.timer_overhead_ms > TIMER_SHARE * summary.p50:
        yield BenchWarning(
            "timer",
            f"reading the clock costs {_percent(environment.timer_overhead_ms / summary.p50)} of a call",
            "compare ratios and throughput instead",
            label,
        )


def _engagement_warnings(found: Measurement) -> Iterator[BenchWarning]:
    label, requested, engaged = found.label, found.requested, found.engaged
    device = device_kind(requested.device)
    share = engaged.shares.get(requested.device, engaged.shares.get(device, 0.0))
    if share < 0.999:
        rest = ", ".join(f"{_percent(s)} on {d}" for d, s in engaged.shares.items() if d != device)
        if engaged.left_on_cpu:
            rest += f" ({', '.join(f'{n} {op}' for op, n in engaged.left_on_cpu.items())})"
        yield BenchWarning(
            "not_on_device",
            f"{_percent(share)} of its operations run on {device}{', ' * bool(rest)}{rest}",
            "copies between devices cost time: a model made only of operations the device supports runs entirely on it",
            label,
        )
    if requested.precision == "int8" and engaged.int8_compute_ops == 0:
        yield BenchWarning(
            "int8_not_engaged",
            f"none of its {engaged.compute_ops} convolutions and matrix products run in int8",
            "the model is smaller but not faster: convert it for this runtime",
            label,
        )
    if engaged.max_batch <= 1:
        cause = (
            "its target compiles it for one sample"
            if requested.static_shapes
            else ("the model has no batch dimension, or a fixed one")
        )
        yield BenchWarning(
            "batches_not_used",
            f"runs one sample per call: {cause}",
            "small models gain most from batches, large ones on a CPU hardly any",
            label,
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
