"""The litert runtime on real files: this project's small CNN, and MLPerf Tiny's reference models."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeserve.bundle import Binding, VariantFiles
from edgeserve.devices import usable_cores
from edgeserve.errors import DeviceUnavailable, InferenceFailed, SourceError, UnsupportedModel
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.runtimes.litert import LiteRtSession
from edgeserve.runtimes.probing import open_in_child
from edgeserve.tensors import Interface, Tensors, TensorSpec
from tests.networks import SMALL_CNN, images, small_cnn

pytest.importorskip("ai_edge_litert")

DATA = Path(__file__).parent.parent / "data"
TINY = Path(__file__).parents[3] / "shared" / "data" / "mlperf-tiny"


def small(precision: str) -> VariantFiles:
    path = DATA / f"small-cnn-{precision}.tflite"
    return VariantFiles("tflite", path, "tflite", precision, SMALL_CNN, batch=1)  # type: ignore[arg-type]


def opened(model: VariantFiles, **options: int) -> LiteRtSession:
    session = runtime("litert").load(model, "cpu", LoadOptions(**options))
    assert isinstance(session, LiteRtSession)
    return session


@pytest.fixture(scope="module")
def reference() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(small_cnn().SerializeToString())


def wanted(reference: onnxruntime.InferenceSession, inputs: np.ndarray) -> Tensors:
    names = [s.name for s in SMALL_CNN.outputs]
    return dict(zip(names, reference.run(names, {"image": inputs}), strict=True))


def test_probe_finds_the_engine_and_its_cpu() -> None:
    info = runtime("litert").probe()
    assert info.installed
    assert info.opens("cpu")
    # Where a Vulkan loader is but no GPU, it says what kept it from opening one.
    assert info.problem is None or "cannot open 'gpu'" in info.problem


@pytest.mark.parametrize("size", [1, 3])
def test_fp32_gives_the_source_models_numbers(
    reference: onnxruntime.InferenceSession, size: int
) -> None:
    inputs = images(size)
    got = opened(small("fp32")).run({"image": inputs})
    for name, array in wanted(reference, inputs).items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], array, atol=1e-5)


def test_int8_borders_take_and_give_floats(reference: onnxruntime.InferenceSession) -> None:
    inputs = images(64)
    got = opened(small("int8")).run({"image": inputs})
    expected = wanted(reference, inputs)
    error = got["logits"] - expected["logits"]
    sqnr = 10 * np.log10(np.sum(expected["logits"] ** 2) / np.sum(error**2))
    assert got["logits"].dtype == np.float32
    assert sqnr > 20


def test_inputs_beyond_the_int8_range_are_clipped_not_wrapped() -> None:
    session = opened(small("int8"))
    high = session.run({"image": np.full((1, 3, 32, 32), 1e6, np.float32)})
    edge = session.run({"image": np.full((1, 3, 32, 32), 100, np.float32)})
    np.testing.assert_array_equal(high["logits"], edge["logits"])


def test_results_stay_when_the_session_runs_again() -> None:
    session = opened(small("fp32"))
    first = session.run({"image": images(1, seed=1)})
    kept = first["logits"].copy()
    session.run({"image": images(1, seed=2)})
    np.testing.assert_array_equal(first["logits"], kept)


def test_placement_counts_convolutions_in_int8() -> None:
    plain = opened(small("fp32")).placement()
    assert (plain.compute_ops, plain.int8_compute_ops) == (6, 0)
    assert plain.inference_precision == "fp32"
    quantized = opened(small("int8")).placement()
    assert (quantized.compute_ops, quantized.int8_compute_ops) == (6, 6)
    assert quantized.inference_precision == "int8"
    assert quantized.shares == {"cpu": 1.0}


def test_threads_share_one_session(reference: onnxruntime.InferenceSession) -> None:
    session = opened(small("fp32"), threads=1, instances=4)
    assert session.concurrency == max(4, usable_cores())
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            inputs = images(2, seed)
            for _ in range(20):
                got = session.run({"image": inputs})
                np.testing.assert_allclose(
                    got["logits"], wanted(reference, inputs)["logits"], atol=1e-5
                )
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_bindings_rename_and_permute_both_ways() -> None:
    """An interface with channels last on the file that has them first."""
    interface = Interface(
        (TensorSpec("pixels", "FP32", ("n", 32, 32, 3)),),
        (TensorSpec("map", "FP32", ("n", 16, 16, 8)),),
        max_batch=8,
    )
    model = VariantFiles(
        "tflite",
        DATA / "small-cnn-fp32.tflite",
        "tflite",
        "fp32",
        interface,
        batch=1,
        bindings={
            "pixels": Binding("image", (0, 3, 1, 2)),
            "map": Binding("features", (0, 3, 1, 2)),
        },
    )
    inputs = images(2)
    straight = opened(small("fp32")).run({"image": inputs})
    turned = opened(model).run({"pixels": inputs.transpose(0, 2, 3, 1)})
    np.testing.assert_array_equal(turned["map"], straight["features"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_an_accelerator_that_is_not_there_is_an_error_in_the_engine_s_words(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: one that has opened a GPU's driver keeps it."""
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(name, raising=False)
    found = open_in_child("litert", device, {})
    if found.ok:
        pytest.skip(f"this machine has a {device}")
    text = f"litert cannot open '{device}': "
    assert found.error is not None
    assert found.error.startswith(text)
    assert len(found.error) > len(text)
    assert "driver" in (found.hint or "")


def test_a_missing_delegate_library_is_the_loaders_own_message() -> None:
    options = LoadOptions(options={"delegate": "libnowhere.so.1"})
    with pytest.raises(DeviceUnavailable) as raised:
        runtime("litert").load(small("fp32"), "npu", options)
    assert "libnowhere.so.1: cannot open shared object file" in str(raised.value.cause)


def test_the_engine_does_not_greet_on_stderr() -> None:
    code = (
        "import os; from tests.runtimes.test_litert import opened, small\n"
        "opened(small('fp32')); os.write(2, b'mine'); opened(small('fp32'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "mine")


def test_not_a_tflite_file(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(small_cnn().SerializeToString())
    model = VariantFiles("tflite", path, "tflite", "fp32", SMALL_CNN, batch=1)
    with pytest.raises(SourceError, match="litert cannot read"):
        opened(model)


def test_an_interface_the_file_lacks_is_named() -> None:
    interface = Interface((TensorSpec("sound", "FP32", (1, 4)),), SMALL_CNN.outputs)
    model = VariantFiles("t", DATA / "small-cnn-fp32.tflite", "tflite", "fp32", interface)
    with pytest.raises(UnsupportedModel) as raised:
        opened(model)
    assert "no input 'sound', only image" in str(raised.value.cause)


def test_a_shape_the_file_refuses_is_an_inference_failure() -> None:
    interface = Interface((TensorSpec("image", "FP32", ("n", 3, 32, 32)),), SMALL_CNN.outputs)
    model = VariantFiles("t", DATA / "small-cnn-fp32.tflite", "tflite", "fp32", interface)
    with pytest.raises(InferenceFailed, match="litert failed on cpu"):
        opened(model).run({"image": images(3)})


# File, precision, classes, convolutions and matrix products, those in int8. The "float32" keyword
# spotter has int8 weights in half of its layers: dynamic int8.
TINY_MODELS = [
    ("kws_ref_model_float32.tflite", "fp32", 12, 10, 5),
    ("kws_ref_model.tflite", "int8", 12, 10, 10),
    ("pretrainedResnet.tflite", "fp32", 10, 10, 0),
    ("pretrainedResnet_quant.tflite", "int8", 10, 10, 10),
]


@pytest.mark.skipif(not TINY.is_dir(), reason="needs the MLPerf Tiny models in ../shared/data")
@pytest.mark.parametrize(("name", "precision", "classes", "compute", "int8"), TINY_MODELS)
def test_mlperf_tiny(name: str, precision: str, classes: int, compute: int, int8: int) -> None:
    """Other people's files: tensors named by TensorFlow, int8 borders, fixed batch."""
    from ai_edge_litert.interpreter import Interpreter

    file = Interpreter(str(TINY / name))
    (source,), (sink,) = file.get_input_details(), file.get_output_details()
    shape = tuple(int(d) for d in source["shape"])
    interface = Interface(
        (TensorSpec("input", "FP32", ("n", *shape[1:])),),
        (TensorSpec("scores", "FP32", ("n", classes)),),
        max_batch=8,
    )
    bindings = {"input": Binding(source["name"]), "scores": Binding(sink["name"])}
    model = VariantFiles("t", TINY / name, "tflite", precision, interface, 1, bindings)  # type: ignore[arg-type]
    session = opened(model)
    scores = session.run({"input": np.random.default_rng(0).random((3, *shape[1:]), np.float32)})
    # All four end in a softmax.
    np.testing.assert_allclose(scores["scores"].sum(axis=1), 1, atol=0.05)
    placed = session.placement()
    assert (placed.compute_ops, placed.int8_compute_ops) == (compute, int8)
