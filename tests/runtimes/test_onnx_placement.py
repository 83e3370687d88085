"""Placement from onnxruntime's profiles: real ones of the CPU, and kernels as accelerators report them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import VariantFiles
from edgeserve.runtimes import LoadOptions, Placement, runtime
from edgeserve.runtimes.onnx_placement import (
    Kernel,
    float_precision,
    placement_of,
    profile_file,
    read_profile,
    reference_kernels,
)
from edgeserve.runtimes.onnx_providers import CPU
from tests.networks import SMALL_CNN as SMALL_CNN_PORTS
from tests.networks import attention, perceptron, small_cnn

GPU = "WebGpuExecutionProvider"
QNN = "QNNExecutionProvider"


def kernel(
    op: str, provider: str, name: str = "", macs: int | None = 0, kind: str = "float"
) -> Kernel:
    return Kernel(name or op, op, provider, kind, macs)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


# Multiply-accumulates worked out by hand from the shapes in tests/networks.py.
SMALL_CNN = {
    "stem": 8 * 16 * 16 * 3 * 3 * 3,
    "expand": 24 * 16 * 16 * 8,
    "depthwise": 24 * 16 * 16 * 3 * 3,
    "project": 8 * 16 * 16 * 24,
    "head": 32 * 16 * 16 * 8,
    "classify": 32 * 10,
}


def test_the_work_of_a_network_s_operations(tmp_path: Path) -> None:
    kernels = reference_kernels(saved(small_cnn(), tmp_path), {})
    assert {k.name: k.macs for k in kernels if k.macs} == SMALL_CNN
    assert all(k.provider == CPU for k in kernels)


def test_the_work_of_matrix_products(tmp_path: Path) -> None:
    kernels = reference_kernels(saved(perceptron(32), tmp_path), {"x": (3, 32)})
    assert [k.macs for k in kernels if k.macs] == [3 * 32 * 32, 3 * 32 * 32, 3 * 32 * 10]
    kernels = reference_kernels(saved(attention(16, 4), tmp_path), {})
    by_name = {k.name: k.macs for k in kernels}
    assert by_name["scores"] == by_name["mixed"] == 4 * 4 * 16
    assert by_name["query"] == 4 * 16 * 16


def test_a_transposed_convolution_counts_by_its_input(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((4, 2, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])],
        "up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weights],
    )
    opsets = [helper.make_opsetid("", 17)]
    file = saved(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    (up,) = reference_kernels(file, {})
    assert up.macs == 4 * 5 * 5 * 2 * 3 * 3


def test_a_model_that_the_cpu_cannot_run_has_no_reference(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Warp", ["x"], ["y"], domain="com.example")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    file = saved(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    assert reference_kernels(file, {}) == []


def test_a_real_profile_and_no_file_left_behind(tmp_path: Path) -> None:
    profile = profile_file()
    assert profile is not None
    settings = onnxruntime.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = profile.prefix
    session = onnxruntime.InferenceSession(
        small_cnn().SerializeToString(), settings, providers=[CPU]
    )
    session.run(None, {"image": np.zeros((1, 3, 32, 32), np.float32)})
    kernels = profile.finish(session)
    assert sum("Conv" in k.op for k in kernels) == 5
    assert not Path(profile.prefix).parent.exists()


def test_names_that_onnxruntime_changes_are_the_model_s() -> None:
    event = {
        "cat": "Node",
        "name": "stem_token_2_kernel_time",
        "args": {
            "op_name": "Conv",
            "provider": GPU,
            "input_type_shape": [{"float16": [1, 32, 32, 3]}, {"float16": [8]}],
            "output_type_shape": [{"float16": [1, 16, 16, 8]}],
        },
    }
    (found,) = read_profile(json.dumps([event, {"cat": "Session", "name": "x"}]).encode())
    # Packed weights are not in the profile: their work is not known from it.
    assert found == Kernel("stem", "Conv", GPU, "float16", None)


REFERENCE = [
    kernel("Conv", CPU, "a", 900),
    kernel("Relu", CPU, "r"),
    kernel("MatMul", CPU, "b", 100),
]


@pytest.mark.parametrize(
    ("kernels", "provider", "precision", "expected"),
    [
        (
            [kernel("Conv", GPU, "a", None), kernel("Relu", GPU, "r"), kernel("MatMul", GPU, "b")],
            GPU,
            "fp32",
            Placement({"gpu": 1.0}, "fp32", 2, 0, mac_shares={"gpu": 1.0}),
        ),
        (
            [
                kernel("Conv", GPU, "a", None),
                kernel("MemcpyToHost", GPU),
                kernel("Relu", CPU, "r"),
                kernel("MatMul", CPU, "b", 100),
            ],
            GPU,
            "fp32",
            Placement(
                {"gpu": 1 / 3, "cpu": 2 / 3},
                "fp32",
                2,
                0,
                mac_shares={"gpu": 0.9, "cpu": 0.1},
                left_on_cpu={"Relu": 1, "MatMul": 1},
            ),
        ),
        # A compiling provider shows one kernel for all it took.
        (
            [kernel("QNN_subgraph_0", QNN), kernel("MatMul", CPU, "b", 100)],
            QNN,
            "int8",
            Placement(
                {"gpu": 2 / 3, "cpu": 1 / 3},
                "int8",
                2,
                1,
                mac_shares={"gpu": 0.9, "cpu": 0.1},
                left_on_cpu={"MatMul": 1},
            ),
        ),
        # WebGPU computes a QDQ model in floats.
        (
            [kernel("DequantizeLinear", GPU), kernel("Conv", GPU, "a"), kernel("MatMul", GPU, "b")],
            GPU,
            "int8",
            Placement({"gpu": 1.0}, "fp32", 2, 0, mac_shares={"gpu": 1.0}),
        ),
        (
            [kernel("Conv", GPU, "a", kind="float16"), kernel("MatMul", GPU, "b")],
            GPU,
            "fp16",
            Placement({"gpu": 1.0}, "fp16", 2, 0, mac_shares={"gpu": 1.0}),
        ),
    ],
)
def test_placement(
    kernels: list[Kernel], provider: str, precision: str, expected: Placement
) -> None:
    found = placement_of(kernels, provider, "gpu", REFERENCE, precision)
    assert found.shares == pytest.approx(expected.shares)
    assert found.mac_shares == pytest.approx(expected.mac_shares)
    assert found.left_on_cpu == expected.left_on_cpu
    assert (found.inference_precision, found.compute_ops, found.int8_compute_ops) == (
        expected.inference_precision,
        expected.compute_ops,
        expected.int8_compute_ops,
    )


def test_work_that_is_not_known_is_not_guessed() -> None:
    kernels = [kernel("Conv", GPU, "a"), kernel("MatMul", CPU, "elsewhere", None)]
    found = placement_of(kernels, GPU, "gpu", REFERENCE, "fp32")
    assert found.mac_shares == {}
    assert found.describe() == "50 % of operations on gpu, fp32; 1 op on cpu: MatMul"


@pytest.mark.parametrize(
    ("placement", "text"),
    [
        (
            Placement({"gpu": 0.9}, "fp16", 3, 0, {"gpu": 0.98, "cpu": 0.02}, {"Softmax": 2}),
            "98 % of MACs on gpu, fp16; 2 ops on cpu: Softmax",
        ),
        (
            Placement({"npu": 0.9}, "int8", 3, 3, {"npu": 0.9999, "cpu": 0.0001}, {"TopK": 1}),
            ">99 % of MACs on npu, int8; 1 op on cpu: TopK",
        ),
        (
            Placement({"gpu": 0.5}, "fp32", 3, 0, {}, {"A": 1, "B": 1, "C": 1, "D": 2}),
            "50 % of operations on gpu, fp32; 5 ops on cpu: A, B, C and 1 kinds more",
        ),
        (Placement({"cpu": 1.0}, "fp32", 3, 0), "100 % of operations on cpu, fp32"),
        (Placement({}, "fp32", 0, 0), "placement unknown, fp32"),
        (Placement({"gpu": 0.0, "cpu": 1.0}, "fp32", 1, 0), "0 % of operations on gpu, fp32"),
    ],
)
def test_description(placement: Placement, text: str) -> None:
    assert placement.describe() == text


@pytest.mark.parametrize(
    ("provider", "device", "options", "variant", "precision"),
    [
        ("TensorrtExecutionProvider", "gpu", {}, "fp32", "fp32"),
        ("TensorrtExecutionProvider", "gpu", {"trt_fp16_enable": True}, "fp32", "fp16"),
        ("QNNExecutionProvider", "npu", {}, "fp32", "fp16"),
        ("QNNExecutionProvider", "npu", {"enable_htp_fp16_precision": "0"}, "fp32", "fp32"),
        ("OpenVINOExecutionProvider", "npu", {}, "fp32", "fp16"),
        ("OpenVINOExecutionProvider", "gpu", {"precision": "FP32"}, "fp32", "fp32"),
        ("CoreMLExecutionProvider", "gpu", {"ModelFormat": "MLProgram"}, "fp32", "fp32"),
        ("CUDAExecutionProvider", "gpu", {}, "int8", "int8"),
        ("WebGpuExecutionProvider", "gpu", {}, "fp16", "fp16"),
    ],
)  # fmt: skip
def test_what_providers_compute_floats_in(
    provider: str, device: str, options: dict[str, str | bool], variant: str, precision: str
) -> None:
    assert float_precision(provider, device, options, variant) == precision


def test_an_interrupted_look_at_the_placement_leaves_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(session: object, shapes: object) -> None:
        raise KeyboardInterrupt

    files = VariantFiles("cnn", saved(small_cnn(), tmp_path), "onnx", "fp32", SMALL_CNN_PORTS)
    session = runtime("onnxruntime").load(files, "cpu", LoadOptions())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("edgeserve.runtimes.onnxruntime.example_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.placement()
    assert not list(tmp_path.glob("edgeserve-profile-*"))
    session.close()
