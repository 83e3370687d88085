"""How many calls of a model run side by side, and with how many threads each, where nobody says."""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.devices.names import device_kind

# Models quicker than that in one call lose little latency on one thread, and several calls with a
# thread each get 10-20 % more done than one call with several (docs/run.md).
_QUICK_MS: Final = 5.0
_MOST: Final = 8


class Instances(msgspec.Struct, frozen=True):
    """`count` calls side by side, `threads` each (0: the engine's choice)."""

    count: int
    threads: int


def plan_instances(
    count: int, threads: int, cores: int, latency_ms: float | None, device: str
) -> Instances:
    """Fill in what is 0: `count` and `threads` from the cores and the latency measured when the bundle
    was made (None: not measured)."""
    if device_kind(device) != "cpu":
        return Instances(count or 1, threads)
    if count and threads:
        return Instances(count, threads)
    if threads:
        return Instances(max(1, min(_MOST, cores // threads)), threads)
    if count == 1:
        return Instances(1, 0)
    if count:
        return Instances(count, max(1, cores // count))
    if cores == 1 or latency_ms is None or latency_ms > _QUICK_MS:
        return Instances(1, 0)
    count = min(cores, _MOST)
    return Instances(count, max(1, cores // count))
