"""The onnxruntime adapter: numbers, honest devices, clear errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeserve.bundle import VariantFiles
from edgeserve.errors import (
    DeviceUnavailable,
    InferenceFailed,
    InvalidInput,
    SourceError,
    UnsupportedModel,
)
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.runtimes import onnxruntime as adapter
from edgeserve.runtimes.onnx_placement import profile_file
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import LINEAR, linear, linear_model


@pytest.fixture
def files(tmp_path: Path) -> VariantFiles:
    onnx.save(linear_model(), tmp_path / "m.onnx")
    return VariantFiles("m", tmp_path / "m.onnx", "onnx", "fp32", LINEAR)


def test_it_computes_what_the_model_says(files: VariantFiles) -> None:
    session = runtime("onnxruntime").load(files, "cpu", LoadOptions(threads=1))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], linear(x), rtol=1e-5, atol=1e-6)
    session.close()


def test_texts_arrive_as_they_were_sent(tmp_path: Path) -> None:
    """Bytes, as protocols carry them: `str(b"a")` would be "b'a'"."""
    info = [helper.make_tensor_value_info(n, TensorProto.STRING, ["batch"]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    specs = [(TensorSpec(n, "BYTES", ("batch",)),) for n in "xy"]
    files = VariantFiles("m", tmp_path / "m.onnx", "onnx", "fp32", Interface(*specs, max_batch=8))
    session = runtime("onnxruntime").load(files, "cpu", LoadOptions())
    texts = np.array(["caf\u00e9".encode(), b"", b"it's"], dtype=object)
    assert session.run({"x": texts})["y"].tolist() == ["caf\u00e9", "", "it's"]
    assert session.run({"x": np.array(["plain"])})["y"].tolist() == ["plain"]
    with pytest.raises(InvalidInput, match="input 'x': expected text in UTF-8"):
        session.run({"x": np.array([b"\xff"], dtype=object)})
    session.close()


def test_threads_may_share_a_session(files: VariantFiles) -> None:
    session = runtime("onnxruntime").load(files, "cpu", LoadOptions(threads=1))
    batches = [np.full((1, 4), i, np.float32) for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: session.run({"x": x})["y"], batches))
    for x, y in zip(batches, results, strict=True):
        np.testing.assert_allclose(y, linear(x), rtol=1e-5, atol=1e-4)
    session.close()


def test_placement_counts_matrix_products(files: VariantFiles) -> None:
    placement = runtime("onnxruntime").load(files, "cpu", LoadOptions()).placement()
    assert (placement.compute_ops, placement.int8_compute_ops) == (1, 0)
    assert placement.shares == {"cpu": 1.0}
    assert placement.inference_precision == "fp32"


@pytest.mark.parametrize(
    ("device", "provider"), [("gpu", "CUDAExecutionProvider"), ("npu", "QNNExecutionProvider")]
)
def test_a_missing_accelerator_is_an_error_and_never_a_cpu(
    files: VariantFiles, device: str, provider: str
) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        runtime("onnxruntime").load(files, device, LoadOptions(options={"provider": provider}))
    assert provider in (caught.value.cause or "")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08garbage"])
def test_a_file_that_is_no_model_says_so(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    with pytest.raises((SourceError, UnsupportedModel), match=r"m\.onnx"):
        runtime("onnxruntime").load(
            VariantFiles("m", file, "onnx", "fp32", LINEAR), "cpu", LoadOptions()
        )


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Warp", ["x"], ["y"], domain="com.example", name="warp0")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel) as caught:
        runtime("onnxruntime").load(
            VariantFiles("m", tmp_path / "m.onnx", "onnx", "fp32", LINEAR), "cpu", LoadOptions()
        )
    assert "Warp" in (caught.value.cause or "")


def test_a_failing_run_carries_the_engine_s_words(files: VariantFiles) -> None:
    session = runtime("onnxruntime").load(files, "cpu", LoadOptions())
    with pytest.raises(InferenceFailed) as caught:
        session.run({"x": np.zeros((1, 9), np.float32)})
    assert "Expected: 4" in (caught.value.cause or "")


def test_without_a_provider_named_the_first_that_opens_is_taken(
    files: VariantFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are refused here; each says why."""
    monkeypatch.setattr(adapter, "_providers", lambda *given: ["ACMEProvider", "OtherProvider"])
    with pytest.raises(DeviceUnavailable, match="cannot open 'gpu'") as caught:
        runtime("onnxruntime").load(files, "gpu", LoadOptions())
    assert "ACMEProvider" in (caught.value.cause or "")
    assert "OtherProvider" in (caught.value.cause or "")
    monkeypatch.setattr(adapter, "_providers", lambda *given: ["ACMEProvider", adapter.CPU])
    runtime("onnxruntime").load(files, "gpu", LoadOptions()).close()


def test_a_provider_that_ran_nothing_fails_instead_of_being_a_cpu(files: VariantFiles) -> None:
    """For versions of onnxruntime that do not tell at load what a provider takes: its profile does."""
    opening = adapter._open(onnxruntime, files, adapter.CPU, "gpu", LoadOptions(), profile_file())
    session = adapter.OnnxRuntimeSession(files, opening, "gpu", "ACMEProvider", LoadOptions())
    for _ in range(2):
        with pytest.raises(InferenceFailed, match="ran no part of the model"):
            session.run({"x": np.zeros((1, 4), np.float32)})
    assert session.placement().shares == {"gpu": 0.0, "cpu": 1.0}
    session.close()


def test_probe_tells_version_and_cpu() -> None:
    info = runtime("onnxruntime").probe()
    assert info.version
    assert info.opens("cpu")
