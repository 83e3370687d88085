"""The OpenVINO adapter on its real engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.bundle import VariantFiles
from edgeserve.errors import DeviceUnavailable, InferenceFailed, SourceError, UsageError
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.runtimes.openvino_pool import Pool
from edgeserve.tensors import DTYPES, Interface, Tensors, TensorSpec
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


def test_rows_run_in_the_batches_that_were_asked_for(
    files: VariantFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run = Pool.run

    def noting(pool: Pool, inputs: Tensors) -> Tensors:
        ran.append(len(inputs["x"]))
        return run(pool, inputs)

    monkeypatch.setattr(Pool, "run", noting)
    options = LoadOptions(static_shapes=True, batches=(2, 4, 999))
    session = runtime("openvino").load(files, "cpu", options)
    x = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], linear(x), rtol=1e-5, atol=1e-5)
    assert ran == [4, 4, 2, 1]
    assert session.placement().compute_ops == 1
    session.close()


def unwritable(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "arranged",
    [
        lambda a: a,
        unwritable,  # as views on bytes are
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a.astype(np.float64),
    ],
)
def test_inputs_are_read_however_they_lie(
    files: VariantFiles, arranged: Callable[[np.ndarray], np.ndarray]
) -> None:
    session = runtime("openvino").load(files, "cpu", LoadOptions())
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    got = session.run({"x": arranged(x.copy())})["y"]
    np.testing.assert_allclose(got, linear(x), rtol=1e-5, atol=1e-5)
    session.close()


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "BYTES"])
def test_every_type_goes_in_and_comes_out(tmp_path: Path, dtype: str) -> None:
    spec = TensorSpec("x", dtype, ("batch", 4)), TensorSpec("y", dtype, ("batch", 4))
    kinds = {"BF16": "bf16", "BOOL": "boolean", "FP16": "f16", "FP32": "f32", "FP64": "f64"}
    kind = kinds.get(dtype) or dtype.lower().replace("uint", "u").replace("int", "i")
    ops = openvino.opset13
    given = ops.parameter([-1, 4], getattr(openvino.Type, kind), name="x")
    given.output(0).set_names({"x"})
    copied = ops.concat([given, given], 0)
    copied.output(0).set_names({"y"})
    openvino.save_model(openvino.Model([copied], [given]), tmp_path / "m.xml", False)
    interface = Interface((spec[0],), (spec[1],))
    files = VariantFiles("m", tmp_path / "m.xml", "openvino-ir", "fp32", interface)
    session = runtime("openvino").load(files, "cpu", LoadOptions())
    x = np.array([[0, 1, 0, 1]]).astype(DTYPES[dtype])
    if dtype == "BF16":
        x *= 0x3F80
    got = session.run({"x": x})["y"]
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(got, np.concatenate([x, x]))
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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is read as on Linux")
def test_a_running_call_may_use_any_core(files: VariantFiles) -> None:
    session = runtime("openvino").load(files, "cpu", LoadOptions(threads=1, instances=1))
    x = np.zeros((1 << 20, 4), np.float32)  # takes long enough to be seen running
    running = threading.Event()
    ended = threading.Event()
    caller = 0

    def call() -> None:
        nonlocal caller
        caller = threading.get_native_id()
        while not ended.is_set():
            session.run({"x": x})
            running.set()

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert running.wait(60)
        allowed = set()
        for _ in range(100):
            time.sleep(0.002)
            allowed.add(frozenset(os.sched_getaffinity(caller)))
    finally:
        ended.set()
        thread.join()
    assert allowed == {frozenset(os.sched_getaffinity(0))}
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
