"""How faults are written."""

from __future__ import annotations

import pytest

from edgeserve.errors import UsageError
from edgeserve.runtimes.inject import FAULTS, Fault, parse_fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("gpu:crash@100", Fault("gpu:crash@100", "gpu", "segv", 0.0, 100, False)),
        ("npu.1:kill@1+", Fault("npu.1:kill@1+", "npu.1", "kill", 0.0, 1, True)),
        ("gpu:nan@load", Fault("gpu:nan@load", "gpu", "nan", 0.0, 1, False)),
        ("gpu:wrong@warm-up", Fault("gpu:wrong@warm-up", "gpu", "wrong", 0.0, 1, False)),
        ("gpu:slow-open=2.5", Fault("gpu:slow-open=2.5", "gpu", "slow-open", 2.5, 0, False)),
        ("gpu:disappear@7", Fault("gpu:disappear@7", "gpu", "disappear", 5.0, 7, False)),
        ("gpu:oom=8@load+", Fault("gpu:oom=8@load+", "gpu", "oom", 8.0, 0, True)),
        ("gpu:stand-in", Fault("gpu:stand-in", "gpu", "stand-in", 0.0, 0, False)),
        (
            "openvino/gpu/openvino-int8:hang@3",
            Fault("openvino/gpu/openvino-int8:hang@3", "openvino/gpu/openvino-int8", "hang", 1e6, 3, False),
        ),
    ],
)  # fmt: skip
def test_faults_are_read(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gpu", "is not a valid fault"),
        ("gpu:", "is not a valid fault"),
        (":crash@1", "is not a valid fault"),
        ("gpu:crash@0", "is not a valid fault"),
        ("gpu:crash@soon", "is not a valid fault"),
        ("gpu:crash@-1", "is not a valid fault"),
        ("gpu:crash", "does not say when"),
        ("gpu:crsh@1", "unknown fault 'crsh'"),
        ("gpu:kill=3@1", "kill does not take a number"),
        ("gpu:hang=1.2.3@1", r"1\.2\.3 is not a valid number"),
        ("gpu:open-failure@9", "only possible @load"),
    ],
)
def test_what_is_no_fault_is_refused_with_a_hint(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        parse_fault(text)
    assert caught.value.hint


def test_a_fault_concerns_a_device_its_indices_or_one_candidate() -> None:
    fault = parse_fault("gpu:kill@1")
    assert fault.concerns("gpu", "onnxruntime/gpu/x")
    assert fault.concerns("gpu.1", "onnxruntime/gpu.1/x")
    assert not fault.concerns("npu", "openvino/npu/x")
    assert parse_fault("openvino/npu/x:kill@1").concerns("npu", "openvino/npu/x")
    assert not parse_fault("gpu.1:kill@1").concerns("gpu", "onnxruntime/gpu/x")


def test_every_fault_is_written_in_the_documentation() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "fallback.md").read_text("utf-8")
    assert [name for name in FAULTS if f"`{name}" not in text] == []
