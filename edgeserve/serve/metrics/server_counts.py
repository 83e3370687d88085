"""The counts of a server of one process or several, as protocols ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from edgeserve.serve.metrics.statistics import ModelStatistics

# Metrics that are read again where workers are added up.
REQUEST_TIME: Final = "edgeserve_request_seconds"
MEMORY: Final = "edgeserve_resident_memory_bytes"


class RequestCounts(msgspec.Struct, frozen=True):
    """The requests of one version of a model since the server started: answered, failed by reason, and those that
    wait or run now. `times` counts those that took no longer than each bound of REQUEST_SECONDS but longer than the
    bound before; the last one counts all that took longer."""

    answered: int = 0
    failed: dict[str, int] = {}
    pending: int = 0
    times: tuple[int, ...] = ()


class Counts(Protocol):
    """What was counted up to now. Of the `silent` workers, which did not answer in time, it holds what they reported
    last."""

    @property
    def silent(self) -> Sequence[int]: ...

    def metrics(self) -> bytes:
        """As Prometheus text."""

    def statistics(self) -> list[ModelStatistics]:
        """Of each loaded version, as Triton's statistics extension has it."""

    def requests(self) -> Mapping[tuple[str, str], RequestCounts]:
        """Of each version that was ever served, by name and version."""

    def memory_bytes(self) -> int:
        """Resident memory of all processes."""
