"""What a measurement rests on: the machine, versions, and what else went on meanwhile."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bench.interleave import timer_overhead_ms
from edgeserve.devices import Machine, machine
from edgeserve.version import __version__

_GOVERNOR: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Environment(msgspec.Struct, frozen=True):
    """The machine and its state. None: the system does not tell.

    `load_average` is the one-minute value before the measurement, over all the machine's cores;
    `stolen` the share of time that the hypervisor gave to other machines during it.
    """

    time: str
    machine: Machine
    edgeserve: str
    python: str
    numpy: str
    runtimes: dict[str, str]
    load_average: float | None
    all_cores: int
    governor: str | None
    on_battery: bool | None
    stolen: float | None
    timer_overhead_ms: float


class Before(msgspec.Struct, frozen=True):
    """What only can be seen before a measurement puts load on the machine."""

    time: str
    load_average: float | None
    cpu_times: dict[str, float]


def observe_before() -> Before:
    return Before(
        time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        load_average=_load_average(),
        cpu_times=_cpu_times(),
    )


def environment(before: Before, runtimes: Mapping[str, str]) -> Environment:
    """The record, at the end of a measurement; `runtimes` maps the engines used to their versions."""
    import numpy as np

    return Environment(
        time=before.time,
        machine=machine(),
        edgeserve=__version__,
        python=platform.python_version(),
        numpy=np.__version__,
        runtimes=dict(runtimes),
        load_average=before.load_average,
        all_cores=os.cpu_count() or 1,
        governor=_governor(),
        on_battery=_on_battery(),
        stolen=stolen_share(before.cpu_times, _cpu_times()),
        timer_overhead_ms=timer_overhead_ms(),
    )


def stolen_share(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Steal time over all CPU time between two readings (proc_stat(5))."""
    if "steal" not in before or "steal" not in after:
        return None
    # The kernel counts guests' time in `user` and `nice` already.
    total = sum(after[k] - before.get(k, 0.0) for k in after if not k.startswith("guest"))
    return max(0.0, after["steal"] - before["steal"]) / total if total > 0 else None


def _cpu_times() -> dict[str, float]:
    try:
        import psutil

        return dict(psutil.cpu_times()._asdict())
    except (ImportError, OSError):
        return {}


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return None


def _governor() -> str | None:
    try:
        return _GOVERNOR.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _on_battery() -> bool | None:
    try:
        import psutil

        battery = psutil.sensors_battery()
    except (ImportError, AttributeError, OSError):
        return None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged
