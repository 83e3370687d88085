"""The record of machine and circumstances."""

from __future__ import annotations

import msgspec
import pytest

import edgeserve
from edgeserve.bench.environment import Environment, environment, observe_before, stolen_share
from edgeserve.devices import machine


def test_the_record_names_machine_versions_and_load() -> None:
    found = environment(observe_before(), {"onnxruntime": "1.0"})
    assert found.machine == machine()
    assert found.edgeserve == edgeserve.__version__
    assert found.runtimes == {"onnxruntime": "1.0"}
    assert found.all_cores >= found.machine.cores
    assert found.timer_overhead_ms > 0
    assert msgspec.json.decode(msgspec.json.encode(found), type=Environment) == found


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ({}, {}, None),
        ({"user": 1.0}, {"user": 2.0}, None),
        ({"user": 1.0, "steal": 0.0}, {"user": 1.0, "steal": 0.0}, None),
        ({"user": 1.0, "idle": 1.0, "steal": 0.0}, {"user": 2.0, "idle": 3.0, "steal": 1.0}, 0.25),
        # A guest's time is in `user` too.
        (
            {"user": 0.0, "guest": 0.0, "steal": 0.0},
            {"user": 3.0, "guest": 3.0, "steal": 1.0},
            0.25,
        ),
    ],
)
def test_stolen_time_is_a_share_of_all_time(
    before: dict[str, float], after: dict[str, float], share: float | None
) -> None:
    assert stolen_share(before, after) == share
