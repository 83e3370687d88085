"""The OpenVINO adapter on its real engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.bundle import VariantFiles
from edgeserve.errors import DeviceUnavailable, InferenceFailed, SourceError, UsageError
from edgeserve.runtimes import LoadOptions, runtime
from tests.bundles import LINEAR, linear, linear_model

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


@pytest.fixture
def files(tmp_path: Path) -> VariantFiles:
    onnx.save(linear_model(), tmp_path / "m.onnx")
    model = openvino.convert_model(tmp_path / "m.onnx")
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    return VariantFiles("m", tmp_path / "m.xml", "openvino-ir", "fp32", LINEAR)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_it_computes_in_fp32_whatever_the_cpu_prefers(
    files: VariantFiles, static: bool, rows: int
) -> None:
    session = runtime("openvino").load(files, "cpu", LoadOptions(static_shapes=static))
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], linear(x), rtol=1e-5, atol=1e-5)
    placement = session.placement()
    assert placement.inference_precision == "fp32"
    assert placement.compute_ops == 1
    session.close()


def test_callers_share_the_pool_and_get_their_own_answers(files: VariantFiles) -> None:
    session = runtime("openvino").load(files, "cpu", LoadOptions(threads=1, instances=2))
    assert session.concurrency == 2
    batches = [np.full((1, 4), i, np.float32) for i in range(200)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda x: session.run({"x": x})["y"], batches))
    for x, y in zip(batches, results, strict=True):
        np.testing.assert_allclose(y, linear(x), rtol=1e-4, atol=1e-3)
    session.close()


def test_outputs_stay_as_they_were_after_the_next_call(files: VariantFiles) -> None:
    session = runtime("openvino").load(files, "cpu", LoadOptions(static_shapes=True))
    first = session.run({"x": np.ones((1, 4), np.float32)})["y"]
    kept = first.copy()
    session.run({"x": np.full((1, 4), 9, np.float32)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_a_missing_accelerator_is_an_error_with_the_engine_s_words(
    files: VariantFiles, device: str
) -> None:
    if runtime("openvino").probe().opens(device):
        pytest.skip(f"this machine has a {device}")
    with pytest.raises(DeviceUnavailable) as caught:
        runtime("openvino").load(files, device, LoadOptions())
    assert caught.value.cause
    assert "CPU" in (caught.value.hint or "")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    broken = VariantFiles("m", tmp_path / "m.xml", "openvino-ir", "fp32", LINEAR)
    with pytest.raises((SourceError, UsageError), match=r"m\.xml"):
        runtime("openvino").load(broken, "cpu", LoadOptions())


def test_a_failing_run_carries_the_engine_s_words(files: VariantFiles) -> None:
    session = runtime("openvino").load(files, "cpu", LoadOptions(static_shapes=True))
    with pytest.raises(InferenceFailed) as caught:
        session.run({"x": np.zeros((1, 9), np.float32)})
    assert caught.value.cause
