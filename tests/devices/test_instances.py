"""How cores are divided among calls where nobody says."""

from __future__ import annotations

import pytest

from edgeserve.devices import plan_instances


@pytest.mark.parametrize(
    ("asked", "cores", "latency_ms", "device", "wanted"),
    [
        ((0, 0), 4, 2.0, "cpu", (4, 1)),
        ((0, 0), 16, 2.0, "cpu", (8, 2)),
        ((0, 0), 4, 20.0, "cpu", (1, 0)),
        ((0, 0), 4, None, "cpu", (1, 0)),
        ((0, 0), 1, 2.0, "cpu", (1, 0)),
        ((2, 0), 4, 20.0, "cpu", (2, 2)),
        ((1, 0), 4, 2.0, "cpu", (1, 0)),
        ((0, 2), 4, 20.0, "cpu", (2, 2)),
        ((3, 5), 4, 2.0, "cpu", (3, 5)),
        ((0, 0), 4, 2.0, "gpu", (1, 0)),
        ((2, 1), 4, 2.0, "npu.1", (2, 1)),
    ],
)
def test_instances_and_threads(
    asked: tuple[int, int],
    cores: int,
    latency_ms: float | None,
    device: str,
    wanted: tuple[int, int],
) -> None:
    chosen = plan_instances(*asked, cores, latency_ms, device)
    assert (chosen.count, chosen.threads) == wanted
