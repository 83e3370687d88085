"""onnxruntime's execution providers: their names, and those that come as plug-in wheels.

Classic providers are built into the onnxruntime wheel that has them (onnxruntime-gpu, -webgpu, …, of which
an environment holds one). Plug-ins lie beside plain onnxruntime and are registered here, with the
interface that their wheels share: `get_library_path()` and `get_ep_name()`.
https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from edgeserve.bundle.manifest import Option
from edgeserve.errors import DeviceUnavailable
from edgeserve.runtimes.native import plain_words

CPU: Final = "CPUExecutionProvider"
# Providers by device, in order of preference where the candidate's options name none.
PROVIDERS: Final[dict[str, tuple[str, ...]]] = {
    "gpu": (
        "NvTensorRTRTXExecutionProvider",
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
        "ROCMExecutionProvider",
        "MIGraphXExecutionProvider",
        "DmlExecutionProvider",
        "CoreMLExecutionProvider",
        "OpenVINOExecutionProvider",
        "WebGpuExecutionProvider",
    ),
    "npu": (
        "QNNExecutionProvider",
        "VitisAIExecutionProvider",
        "OpenVINOExecutionProvider",
        "CoreMLExecutionProvider",
    ),
}
# What `provider = "…"` may say besides onnxruntime's own names.
_ALIASES: Final = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
}
# Plug-in wheels by provider: module, package.
PLUGINS: Final = {
    "WebGpuExecutionProvider": ("onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu"),
    "OpenVINOExecutionProvider": ("onnxruntime_ep_openvino", "onnxruntime-ep-openvino"),
    "NvTensorRTRTXExecutionProvider": (
        "onnxruntime_ep_nv_tensorrt_rtx",
        "onnxruntime-ep-nv-tensorrt-rtx",
    ),
    "QNNExecutionProvider": ("onnxruntime_qnn", "onnxruntime-qnn"),
}
# The wheel that has a classic provider built in, in place of onnxruntime.
_BUILDS: Final = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "DmlExecutionProvider": "onnxruntime-directml",
    "ROCMExecutionProvider": "onnxruntime-rocm",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "CoreMLExecutionProvider": "onnxruntime (on macOS)",
    "VitisAIExecutionProvider": "onnxruntime-vitisai (of AMD's Ryzen AI software)",
}
# Set to 1, it lets the WebGPU plug-in use a software driver, which it otherwise ignores.
SOFTWARE_WEBGPU: Final = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
_LOCK: Final = threading.Lock()
_registered: dict[str, str] = {}


def engine_words(error: Exception) -> str:
    """onnxruntime's message on one line, without its stack: codes, source files and signatures."""
    return plain_words(str(error)) or repr(error)


class PlugIn(msgspec.Struct, frozen=True):
    """An installed plug-in wheel."""

    provider: str
    module: str
    package: str


def provider_name(asked: str) -> str:
    """onnxruntime's name for a provider: `webgpu` is `WebGpuExecutionProvider`."""
    return _ALIASES.get(asked.lower().replace("_", "-"), asked)


def installed_plug_ins() -> tuple[PlugIn, ...]:
    """The plug-in wheels in this environment. Imports none of them."""
    return tuple(
        PlugIn(provider, module, package)
        for provider, (module, package) in PLUGINS.items()
        if importlib.util.find_spec(module) is not None
    )


def plug_in_of(provider: str) -> PlugIn | None:
    return next((p for p in installed_plug_ins() if p.provider == provider), None)


def accelerators_to_try(available: Iterable[str]) -> list[tuple[str, str]]:
    """(device, provider) of everything but the CPU that is built in or plugged in here."""
    offered = {*available, *(p.provider for p in installed_plug_ins())}
    return [(kind, p) for kind, providers in PROVIDERS.items() for p in providers if p in offered]


def plug_in_devices(plug_in: PlugIn, device: str) -> list[Any]:
    """The plug-in's OrtEpDevices of this kind (`gpu.1`: the second alone), registering it first.

    Raises DeviceUnavailable when it cannot be registered or lists none.
    """
    import onnxruntime as ort

    if not hasattr(ort, "register_execution_provider_library"):
        raise DeviceUnavailable(
            f"onnxruntime cannot open {plug_in.provider}",
            cause=f"onnxruntime {ort.__version__} does not support plug-ins",
            hint="pip install 'onnxruntime>=1.24.4'",
        )
    library = _register(ort, plug_in)
    mine = [
        d
        for d in ort.get_ep_devices()
        if d.ep_name == plug_in.provider or d.ep_metadata.get("library_path") == library
    ]
    kind, _, index = device.partition(".")
    fitting = [d for d in mine if _is_kind(d, kind, plug_in)]
    if index:
        fitting = fitting[int(index) : int(index) + 1]
    if not fitting:
        if not mine:  # so that the next opening asks again: a device may have come by then
            _unregister(ort, plug_in)
        listed = ", ".join(_kind_of(d) for d in mine)
        raise DeviceUnavailable(
            f"onnxruntime cannot open '{device}' by {plug_in.provider}",
            cause=f"{plug_in.package} finds no {device} here: it lists {listed or 'no device'}",
            hint=_missing_hint(plug_in),
        )
    # Several GPUs are several devices of one provider; a session takes one.
    return fitting[:1]


def _register(ort: Any, plug_in: PlugIn) -> str:
    with _LOCK:
        if plug_in.provider in _registered:
            return _registered[plug_in.provider]
        try:
            library = str(importlib.import_module(plug_in.module).get_library_path())
            # Under the provider's own name: some plug-ins call their devices by what is given here.
            ort.register_execution_provider_library(plug_in.provider, library)
        except Exception as error:  # a plug-in's code and onnxruntime raise anything
            text = engine_words(error)
            if "already registered" not in text.lower():
                raise DeviceUnavailable(
                    f"onnxruntime cannot open {plug_in.provider}",
                    cause=text,
                    hint=_missing_hint(plug_in),
                ) from error
            library = ""
        _registered[plug_in.provider] = library
        return library


def _unregister(ort: Any, plug_in: PlugIn) -> None:
    with _LOCK:
        if _registered.pop(plug_in.provider, None):
            ort.unregister_execution_provider_library(plug_in.provider)


def takes_plug_in(provider: str, available: list[str]) -> PlugIn | None:
    """The plug-in to open a provider by; None where it is built in, or not there at all.

    onnxruntime lists the providers of registered plug-ins as available, too.
    """
    if provider in available and provider not in _registered:
        return None
    return plug_in_of(provider)


# The option with which a provider selects one of several devices.
_INDEXED: Final = {
    "CUDAExecutionProvider": "device_id",
    "TensorrtExecutionProvider": "device_id",
    "ROCMExecutionProvider": "device_id",
    "MIGraphXExecutionProvider": "device_id",
    "DmlExecutionProvider": "device_id",
}
# Options of this adapter, not the provider's.
# How far onnxruntime optimizes the graph: disabled, basic, extended, all.
LEVEL: Final = "graph_optimization_level"
_OWN: Final = ("provider", "allow_cpu", LEVEL)
_SESSION_ENTRIES: Final = ("session.", "ep.", "optimization.", "mlas.")


def provider_options(provider: str, device: str, options: Mapping[str, Option]) -> dict[str, str]:
    """The provider's own options, with the device among them if the provider takes it as an option.

    Raises DeviceUnavailable for a second device of a provider that takes none.
    """
    kind, _, index = device.partition(".")
    chosen: dict[str, str] = {}
    if provider == "OpenVINOExecutionProvider":
        chosen["device_type"] = kind.upper() + (f".{index}" if index else "")
    elif provider == "CoreMLExecutionProvider" and kind == "npu":
        chosen["MLComputeUnits"] = "CPUAndNeuralEngine"
    elif index and provider in _INDEXED:
        chosen[_INDEXED[provider]] = index
    elif index not in ("", "0"):
        raise DeviceUnavailable(
            f"onnxruntime cannot open '{device}'",
            cause=f"{provider} cannot select one of several devices",
        )
    return chosen | plug_in_options(options)


# Options that make a provider compute elsewhere: by provider, the option, and words of values that are no GPU
# or NPU of this kind.
_ELSEWHERE: Final = {
    "OpenVINOExecutionProvider": ("device_type", ("CPU", "AUTO", "HETERO", "MULTI")),
    "CoreMLExecutionProvider": ("MLComputeUnits", ("CPUOnly",)),
    "QNNExecutionProvider": ("backend_type", ("cpu", "saver", "ir")),
}


def refuse_elsewhere(provider: str, device: str, options: Mapping[str, Option]) -> None:
    """Raise DeviceUnavailable where the options take the work away from the device that is asked for."""
    name, words = _ELSEWHERE.get(provider, ("", ()))
    value = str(options.get(name, ""))
    if any(value.lower().startswith(word.lower()) for word in words):
        raise DeviceUnavailable(
            f"onnxruntime cannot open '{device}' by {provider}",
            cause=f"the option {name} = '{value}' selects something else",
            hint=f"leave {name} out: '{device}' says where to run",
        )


def plug_in_options(options: Mapping[str, Option]) -> dict[str, str]:
    """What of a candidate's options goes to the provider, as the text it takes."""
    return {
        key: _text(value)
        for key, value in options.items()
        if key not in _OWN and not key.startswith(_SESSION_ENTRIES)
    }


def session_entries(options: Mapping[str, Option]) -> dict[str, str]:
    """What of a candidate's options goes to the session: keys like `session.…` and `ep.…`."""
    return {k: _text(v) for k, v in options.items() if k.startswith(_SESSION_ENTRIES)}


def _text(value: Option) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _is_kind(device: Any, kind: str, plug_in: PlugIn) -> bool:
    if device.device.metadata.get("is_virtual") == "1":  # compiles, but runs nothing
        return False
    found = _kind_of(device)
    if plug_in.provider == "WebGpuExecutionProvider" and found == "cpu":
        return kind == "gpu" and os.environ.get(SOFTWARE_WEBGPU) == "1"
    return found == kind


def _kind_of(device: Any) -> str:
    return str(device.device.type).rpartition(".")[2].lower()


def hardware_name(device: Any) -> str | None:
    """What an OrtEpDevice says of its hardware."""
    if _kind_of(device) == "cpu":
        return "software driver"
    found = device.device.metadata.get("Description") or device.device.vendor
    return str(found) if found else None


def _missing_hint(plug_in: PlugIn) -> str:
    if plug_in.provider == "WebGpuExecutionProvider":
        return (
            "it needs a GPU with a Vulkan driver and libvulkan.so.1 (apt-get install libvulkan1); "
            f"{SOFTWARE_WEBGPU}=1 lets it use a software driver"
        )
    if plug_in.provider == "NvTensorRTRTXExecutionProvider":
        return "it needs an NVIDIA GPU (Ampere or later) and its driver: nvidia-smi"
    if plug_in.provider == "QNNExecutionProvider":
        return "it needs a Qualcomm NPU (Snapdragon X, Dragonwing)"
    return "it needs an Intel GPU or NPU and its driver"


def missing_provider(device: str, wanted: tuple[str, ...], available: list[str]) -> Exception:
    """Why none of the wanted providers is there, and the wheel that would bring the first."""
    first = wanted[0] if wanted else None
    if len(wanted) > 1:
        hint = "edgeserve doctor names the package for what is here; docs/doctor.md lists them"
    elif first in PLUGINS:
        hint = f"pip install {PLUGINS[first][1]}"
    elif first in _BUILDS:
        hint = f"install {_BUILDS[first]} instead of onnxruntime: the two overwrite each other"
    else:
        hint = "edgeserve doctor shows which devices open here"
    return DeviceUnavailable(
        f"onnxruntime cannot open '{device}'",
        cause=f"this build offers {', '.join(available)}"
        + (f", not {wanted[0]}" if len(wanted) == 1 else f", none of them for '{device}'"),
        hint=hint,
    )
