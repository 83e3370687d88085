"""Names, plug-ins and options of onnxruntime's execution providers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgeserve.errors import DeviceUnavailable
from edgeserve.runtimes import onnx_providers as providers
from edgeserve.runtimes.onnx_providers import (
    PlugIn,
    accelerators_to_try,
    engine_words,
    missing_provider,
    plug_in_devices,
    plug_in_options,
    provider_name,
    provider_options,
    refuse_elsewhere,
    session_entries,
)

QNN = PlugIn("QNNExecutionProvider", "onnxruntime_qnn", "onnxruntime-qnn")
WEBGPU = PlugIn("WebGpuExecutionProvider", "onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("webgpu", "WebGpuExecutionProvider"),
        ("CUDA", "CUDAExecutionProvider"),
        ("tensorrt_rtx", "NvTensorRTRTXExecutionProvider"),
        ("DirectML", "DmlExecutionProvider"),
        ("QNNExecutionProvider", "QNNExecutionProvider"),
        ("AcmeExecutionProvider", "AcmeExecutionProvider"),
    ],
)
def test_provider_names(asked: str, name: str) -> None:
    assert provider_name(asked) == name


@pytest.mark.parametrize(
    ("provider", "device", "options", "given"),
    [
        ("CUDAExecutionProvider", "gpu", {"provider": "cuda"}, {}),
        ("CUDAExecutionProvider", "gpu.1", {}, {"device_id": "1"}),
        ("OpenVINOExecutionProvider", "npu", {}, {"device_type": "NPU"}),
        ("OpenVINOExecutionProvider", "gpu.1", {"precision": "FP32"},
         {"device_type": "GPU.1", "precision": "FP32"}),
        ("CoreMLExecutionProvider", "npu", {"ModelFormat": "MLProgram"},
         {"MLComputeUnits": "CPUAndNeuralEngine", "ModelFormat": "MLProgram"}),
        ("TensorrtExecutionProvider", "gpu", {"trt_fp16_enable": True, "allow_cpu": False},
         {"trt_fp16_enable": "1"}),
        ("WebGpuExecutionProvider", "gpu.0", {"session.x": "1"}, {}),
    ],
)  # fmt: skip
def test_options_reach_the_provider_with_the_device(
    provider: str, device: str, options: dict[str, Any], given: dict[str, str]
) -> None:
    assert provider_options(provider, device, options) == given


def test_a_second_device_is_never_quietly_the_first() -> None:
    with pytest.raises(DeviceUnavailable, match=r"gpu\.1"):
        provider_options("WebGpuExecutionProvider", "gpu.1", {})


@pytest.mark.parametrize(
    ("provider", "option", "value", "refused"),
    [
        ("OpenVINOExecutionProvider", "device_type", "CPU", True),
        ("OpenVINOExecutionProvider", "device_type", "AUTO:GPU,CPU", True),
        ("OpenVINOExecutionProvider", "device_type", "GPU.1", False),
        ("CoreMLExecutionProvider", "MLComputeUnits", "CPUOnly", True),
        ("CoreMLExecutionProvider", "MLComputeUnits", "CPUAndGPU", False),
        ("QNNExecutionProvider", "backend_type", "cpu", True),
        ("QNNExecutionProvider", "backend_type", "htp", False),
        ("WebGpuExecutionProvider", "device_type", "CPU", False),
    ],
)
def test_options_do_not_turn_an_accelerator_into_a_cpu(
    provider: str, option: str, value: str, refused: bool
) -> None:
    if not refused:
        refuse_elsewhere(provider, "gpu", {option: value})
        return
    with pytest.raises(DeviceUnavailable, match=f"{option} = '{value}'"):
        refuse_elsewhere(provider, "gpu", {option: value})


def test_session_entries_are_told_from_the_provider_s_options() -> None:
    options: dict[str, Any] = {"provider": "qnn", "session.load_model_format": "ORT", "vtcm_mb": 8}
    assert session_entries(options) == {"session.load_model_format": "ORT"}
    assert plug_in_options(options) == {"vtcm_mb": "8"}


def test_a_missing_provider_names_its_package() -> None:
    available = ["CPUExecutionProvider"]
    for wanted, hint in (
        ("WebGpuExecutionProvider", "pip install onnxruntime-ep-webgpu"),
        ("CUDAExecutionProvider", "install onnxruntime-gpu instead of onnxruntime"),
    ):
        error = missing_provider("gpu", (wanted,), available)
        assert isinstance(error, DeviceUnavailable)
        assert hint in (error.hint or "")
        assert f"not {wanted}" in (error.cause or "")


def test_engine_words_are_without_the_stack() -> None:
    text = (
        "[ONNXRuntimeError] : 11 : EP_FAIL : /src/provider.cc:393 virtual Create(const A&) "
        "[ONNXRuntimeError] : 11 : EP_FAIL : /src/context.cc:136 Initialize(C)::<lambda()> "
        "status == Success was false. Failed to get a WebGPU adapter: No supported adapters"
    )
    assert (
        engine_words(RuntimeError(text)) == "Failed to get a WebGPU adapter: No supported adapters"
    )
    text = (
        "/src/state.cc:729 void ns::Register(Options&, const ns::Options&) Please install TensorRT"
    )
    assert engine_words(RuntimeError(text)) == "Please install TensorRT"
    assert engine_words(RuntimeError("plain\nwords")) == "plain words"
    assert engine_words(RuntimeError()) == "RuntimeError()"


class FakeOrt:
    """onnxruntime as far as plug-ins see it: what it lists is given, and counted is what it is asked."""

    __version__ = "1.32.0"

    def __init__(self, listed: list[Any], failure: str | None = None) -> None:
        self.listed, self.failure = listed, failure
        self.registered: list[str] = []

    def register_execution_provider_library(self, name: str, library: str) -> None:
        if self.failure:
            raise RuntimeError(self.failure)
        self.registered.append(name)

    def unregister_execution_provider_library(self, name: str) -> None:
        self.registered.remove(name)

    def get_ep_devices(self) -> list[Any]:
        return [ep("CPUExecutionProvider", "CPU"), *self.listed]


def ep(name: str, kind: str, **metadata: str) -> Any:
    hardware = SimpleNamespace(
        type=f"OrtHardwareDeviceType.{kind}", metadata=metadata, vendor="ACME"
    )
    return SimpleNamespace(ep_name=name, ep_metadata={}, device=hardware)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeOrt, PlugIn], FakeOrt]:
    """Put an onnxruntime in place that lists what a test says, and a plug-in's module."""

    def put(ort: FakeOrt, plug_in: PlugIn) -> FakeOrt:
        module = SimpleNamespace(get_library_path=lambda: "/lib/plugin.so")
        monkeypatch.setitem(sys.modules, "onnxruntime", ort)
        monkeypatch.setitem(sys.modules, plug_in.module, module)
        return ort

    monkeypatch.setattr(providers, "_registered", {})
    return put


def test_a_plug_in_that_finds_no_hardware_is_a_missing_device(plugged: Any) -> None:
    ort = plugged(FakeOrt([]), WEBGPU)
    with pytest.raises(DeviceUnavailable) as caught:
        plug_in_devices(WEBGPU, "gpu")
    assert caught.value.cause == "onnxruntime-ep-webgpu finds no gpu here: it lists no device"
    assert "libvulkan1" in (caught.value.hint or "")
    # A device that comes later is found by the next opening, which asks again.
    assert ort.registered == []
    ort.listed = [ep("WebGpuExecutionProvider", "GPU")]
    assert len(plug_in_devices(WEBGPU, "gpu")) == 1


def test_hardware_of_another_kind_is_not_taken(
    plugged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(providers.SOFTWARE_WEBGPU, raising=False)
    plugged(FakeOrt([ep("QNNExecutionProvider", "CPU")]), QNN)
    with pytest.raises(DeviceUnavailable, match="finds no npu here: it lists cpu"):
        plug_in_devices(QNN, "npu")
    virtual = ep("WebGpuExecutionProvider", "GPU", is_virtual="1")
    plugged(FakeOrt([virtual, ep("WebGpuExecutionProvider", "CPU")]), WEBGPU)
    with pytest.raises(DeviceUnavailable, match="finds no gpu here"):
        plug_in_devices(WEBGPU, "gpu")


def test_the_second_of_two_devices(plugged: Any) -> None:
    first, second = ep("QNNExecutionProvider", "NPU"), ep("QNNExecutionProvider", "NPU")
    plugged(FakeOrt([first, second]), QNN)
    assert plug_in_devices(QNN, "npu") == [first]
    assert plug_in_devices(QNN, "npu.1") == [second]
    with pytest.raises(DeviceUnavailable):
        plug_in_devices(QNN, "npu.2")


def test_a_library_that_does_not_load_is_its_loader_s_message(plugged: Any) -> None:
    words = "Failed to load library x.so with error: libcuda.so.1: cannot open shared object file"
    plugged(FakeOrt([], failure=f"[ONNXRuntimeError] : 1 : FAIL : {words}"), QNN)
    with pytest.raises(DeviceUnavailable) as caught:
        plug_in_devices(QNN, "npu")
    assert caught.value.cause == words


def test_what_is_built_in_is_tried_on_each_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "installed_plug_ins", lambda: (QNN,))
    available = ["CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]
    assert accelerators_to_try(available) == [
        ("gpu", "CUDAExecutionProvider"),
        ("gpu", "OpenVINOExecutionProvider"),
        ("npu", "QNNExecutionProvider"),
        ("npu", "OpenVINOExecutionProvider"),
    ]
