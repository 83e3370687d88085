from __future__ import annotations

import pytest

from edgeserve.bundle import Candidate
from edgeserve.devices.names import device_kind, is_on


@pytest.mark.parametrize(
    ("device", "wanted", "found"),
    [
        ("gpu.1", None, True),
        ("gpu.1", "gpu", True),
        ("gpu.1", "gpu.1", True),
        ("gpu", "gpu.1", False),
        ("gpu.1", "gpu.2", False),
        ("cpu", "npu", False),
    ],
)
def test_a_device_is_wanted_by_its_name_or_its_kind(
    device: str, wanted: str | None, found: bool
) -> None:
    assert is_on(device, wanted) == found
    assert Candidate("fp32", "onnxruntime", device).is_on(wanted) == found
    assert Candidate("fp32", "onnxruntime", device).kind == device_kind(device)
