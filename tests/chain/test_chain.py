"""Opening chains with fallback, on the real engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeserve.bundle import Bundle, Candidate
from edgeserve.bundle.manifest import decode, encode
from edgeserve.chain import Chain, ChainOptions
from edgeserve.errors import (
    BundleError,
    CheckFailed,
    DeviceUnavailable,
    InferenceFailed,
    UsageError,
)
from tests.bundles import LINEAR, linear, linear_bundle, linear_model, write_bundle
from tests.waiting import wait_for

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
        wait_for(lambda: len(chain.fallbacks) == 1)  # its golden samples failed as well
        assert chain.attempts[0].error is not None


def two_variants(folder: Path) -> Path:
    """linear.edge with a copy of its variant, called `onnx-copy`, behind it in the chain."""
    path = linear_bundle(folder)
    shutil.copytree(path / "onnx-fp32", path / "onnx-copy")
    manifest = decode((path / "manifest.json").read_bytes(), "manifest.json")
    (first,) = manifest.variants
    (entry,) = first.files
    copied = msgspec.structs.replace(entry, path="onnx-copy/model.onnx")
    second = msgspec.structs.replace(first, id="onnx-copy", main=copied.path, files=(copied,))
    manifest = msgspec.structs.replace(
        manifest,
        variants=(first, second),
        chain=(CPU, Candidate("onnx-copy", "onnxruntime", "cpu")),
    )
    (path / "manifest.json").write_bytes(encode(manifest))
    return path


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["onnx-fp32/model.onnx", "golden-inputs.npz"])
def test_a_changed_file_is_not_answered_with_the_next_candidate(tmp_path: Path, file: str) -> None:
    path = two_variants(tmp_path)
    Chain(Bundle.open(path)).close()
    change_a_byte(path / file)
    with pytest.raises(BundleError, match="is not the file the bundle was written with") as caught:
        Chain(Bundle.open(path))
    assert file in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_changed_file_behind_the_serving_candidate_never_takes_over(tmp_path: Path) -> None:
    path = two_variants(tmp_path)
    x = np.ones((1, 4), np.float32)
    with Chain(Bundle.open(path)) as chain:
        change_a_byte(path / "onnx-copy/model.onnx")
        np.testing.assert_allclose(chain.run({"x": x})[0]["y"], linear(x), rtol=1e-5, atol=1e-6)
        chain.session.close()  # a real failure under the chain
        outputs, candidate = chain.run({"x": x})  # opened again from its own file
        np.testing.assert_allclose(outputs["y"], linear(x), rtol=1e-5, atol=1e-6)
        assert candidate == CPU
        assert [(f.source, f.destination) for f in chain.fallbacks] == [(CPU, CPU)]
