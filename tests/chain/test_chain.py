"""Opening chains with fallback, on the real engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain import Chain, ChainOptions
from edgeserve.errors import CheckFailed, DeviceUnavailable, InferenceFailed, UsageError
from tests.bundles import LINEAR, linear, linear_bundle, linear_model, write_bundle

GPU = Candidate("onnx-fp32", "onnxruntime", "gpu", options={"provider": "CUDAExecutionProvider"})
CPU = Candidate("onnx-fp32", "onnxruntime", "cpu")
NPU = Candidate("onnx-fp32", "onnxruntime", "npu")


def test_a_chain_serves_the_source_s_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    with Chain(Bundle.open(linear_bundle(tmp_path))) as chain:
        outputs, candidate = chain.run({"x": x})
        assert candidate == CPU
        np.testing.assert_allclose(outputs["y"], linear(x), rtol=1e-5, atol=1e-6)


def test_devices_that_do_not_open_are_passed_over_and_named(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path, chain=(GPU, NPU, CPU))
    with Chain(Bundle.open(path)) as chain:
        assert chain.candidate == CPU
        assert [a.ok for a in chain.attempts] == [False, False, True]
        assert "onnxruntime cannot open 'gpu'" in (chain.attempts[0].error or "")
        assert "CUDAExecutionProvider" in (chain.attempts[0].error or "")
        assert chain.attempts[2].load_ms is not None


def test_without_fallback_the_first_candidate_s_own_error_is_raised(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path, chain=(GPU, CPU))
    with pytest.raises(DeviceUnavailable, match="'gpu'"):
        Chain(Bundle.open(path), ChainOptions(fallback=False))


def test_a_chain_without_a_working_candidate_lists_every_reason(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path, chain=(GPU, NPU))
    with pytest.raises(DeviceUnavailable) as caught:
        Chain(Bundle.open(path))
    assert "onnxruntime/gpu" in (caught.value.cause or "")
    assert "onnxruntime/npu" in (caught.value.cause or "")


def test_a_device_filter_that_matches_nothing_shows_the_chain(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Chain(Bundle.open(linear_bundle(tmp_path)), ChainOptions(device="npu"))
    assert "onnxruntime/cpu/onnx-fp32" in (caught.value.hint or "")


def test_wrong_numbers_fail_the_golden_check(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    wrong = linear(x) + np.float32(0.1)
    path = write_bundle(tmp_path, "wrong", linear_model(), LINEAR, {"x": x}, {"y": wrong})
    with pytest.raises(CheckFailed) as caught:
        Chain(Bundle.open(path))
    assert "does not reproduce the golden samples" in (caught.value.cause or "")


def test_a_request_that_fails_everywhere_raises_the_engine_s_message(tmp_path: Path) -> None:
    with Chain(Bundle.open(linear_bundle(tmp_path))) as chain:
        with pytest.raises(InferenceFailed) as caught:
            chain.run({"x": np.zeros((1, 5), np.float32)})
        assert "x" in (caught.value.cause or "")
        chain.run({"x": np.zeros((1, 4), np.float32)})  # and the chain still serves


def test_a_failing_request_is_run_again_on_the_next_candidate(tmp_path: Path) -> None:
    """A real failure: the first candidate's session is closed under the chain."""
    second = Candidate("onnx-fp32", "onnxruntime", "cpu", options={})
    path = linear_bundle(tmp_path, chain=(CPU, second))
    x = np.ones((1, 4), np.float32)
    with Chain(Bundle.open(path)) as chain:
        chain.session.close()
        outputs, _ = chain.run({"x": x})
        np.testing.assert_allclose(outputs["y"], linear(x), rtol=1e-5, atol=1e-6)
        assert len(chain.fallbacks) == 1
        assert chain.attempts[0].error is not None
