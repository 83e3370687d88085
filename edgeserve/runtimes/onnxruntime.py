"""onnxruntime: CPU, and the accelerators its builds bring as execution providers.

onnxruntime falls back to the CPU silently when a provider cannot be opened; this adapter compares what
was asked with what was got and raises DeviceUnavailable instead.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.bundle import VariantFiles
from edgeserve.errors import (
    DependencyMissing,
    DeviceUnavailable,
    InferenceFailed,
    InvalidInput,
    SourceError,
    UnsupportedModel,
)
from edgeserve.runtimes.base import DeviceInfo, LoadOptions, Placement, RuntimeInfo, Session
from edgeserve.tensors import Array, Tensors, TensorSpec

CPU: Final = "CPUExecutionProvider"
# Providers by device, in order of preference where the candidate's options name none.
PROVIDERS: Final[dict[str, tuple[str, ...]]] = {
    "gpu": (
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
        "ROCMExecutionProvider",
        "DmlExecutionProvider",
        "CoreMLExecutionProvider",
        "WebGpuExecutionProvider",
    ),
    "npu": ("QNNExecutionProvider", "VitisAIExecutionProvider"),
}
_INT8_OPS: Final = {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger",
                    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "NhwcQLinearConv"}  # fmt: skip
_FLOAT_OPS: Final = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "Gemm",
                     "FusedMatMul", "FusedGemm", "MatMulNBits"}  # fmt: skip


class OnnxRuntime:
    """The `onnxruntime` runtime."""

    name = "onnxruntime"
    formats: tuple[str, ...] = ("onnx",)
    requires: tuple[str, ...] = ("onnxruntime>=1.20",)

    def probe(self) -> RuntimeInfo:
        try:
            import onnxruntime as ort
        except ImportError as error:
            return RuntimeInfo(self.name, None, problem=str(error), hint="pip install onnxruntime")
        devices = [DeviceInfo("cpu", CPU)]
        problems = []
        for device, providers in PROVIDERS.items():
            for provider in set(providers) & set(ort.get_available_providers()):
                try:
                    _create_session(identity_model(), provider, LoadOptions())
                except DeviceUnavailable as error:
                    problems.append(str(error))
                else:
                    devices.append(DeviceInfo(device, provider))
        return RuntimeInfo(
            self.name, ort.__version__, tuple(devices), problem="; ".join(problems) or None
        )

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        provider = self._provider(device, options)
        session = _create_session(model.path, provider, options)
        return OnnxRuntimeSession(model, session, device, provider, options)

    def _provider(self, device: str, options: LoadOptions) -> str:
        try:
            import onnxruntime as ort
        except ImportError:
            raise DependencyMissing("onnxruntime", needed_for="the runtime onnxruntime") from None
        kind = device.partition(".")[0]
        if kind == "cpu":
            return CPU
        available = ort.get_available_providers()
        asked = options.options.get("provider")
        wanted = (str(asked),) if asked else PROVIDERS.get(kind, ())
        for provider in wanted:
            if provider in available:
                return provider
        raise DeviceUnavailable(
            f"onnxruntime cannot open '{device}'",
            cause=f"this build offers {', '.join(available)}; wanted {' or '.join(wanted)}",
            hint="install the onnxruntime build for this device, in place of onnxruntime",
        )


class OnnxRuntimeSession:
    """One onnxruntime session. `run` scales over threads, so concurrency is the number of cores."""

    def __init__(
        self, model: VariantFiles, session: Any, device: str, provider: str, options: LoadOptions
    ) -> None:
        self._model = model
        self._session = session
        self._provider = provider
        self._options = options
        self._names = [spec.name for spec in model.interface.outputs]
        self._files_names = [model.binding(name).name for name in self._names]
        self._texts = [s.name for s in model.interface.inputs if s.dtype == "BYTES"]
        self._renamed = any(model.binding(s.name).name != s.name for s in model.interface.inputs)
        self.device = device
        self.inputs: tuple[TensorSpec, ...] = model.interface.inputs
        self.outputs: tuple[TensorSpec, ...] = model.interface.outputs
        self.concurrency = os.cpu_count() or 1

    def run(self, inputs: Tensors) -> Tensors:
        """Texts come as bytes and are UTF-8. Raises InvalidInput where one is not, InferenceFailed."""
        if self._texts:
            inputs = {n: _texts(n, a) if n in self._texts else a for n, a in inputs.items()}
        if self._renamed:
            inputs = {self._model.binding(n).name: a for n, a in inputs.items()}
        try:
            values = self._session.run(self._files_names, inputs)
        except Exception as error:  # its exception classes share no base but Exception
            raise InferenceFailed(
                f"onnxruntime failed on {self.device}", cause=_one_line(error)
            ) from error
        return dict(zip(self._names, values, strict=True))

    def placement(self) -> Placement:
        """Profiles one inference in a second session: onnxruntime tells its fused graph no other way."""
        with tempfile.TemporaryDirectory() as folder:
            session = _create_session(
                self._model.path, self._provider, self._options, profile=Path(folder) / "profile"
            )
            session.run(None, {i.name: _zeros(i) for i in session.get_inputs()})
            events = json.loads(Path(session.end_profiling()).read_text())
        nodes = [e["args"] for e in events if e.get("cat") == "Node" and "op_name" in e["args"]]
        providers = Counter(n.get("provider", CPU) for n in nodes if n.get("provider"))
        ops = Counter(n["op_name"] for n in nodes if n.get("provider"))
        total = sum(providers.values()) or 1
        on_cpu = providers[CPU] / total
        shares = {"cpu": 1.0} if self.device == "cpu" else {self.device: 1 - on_cpu, "cpu": on_cpu}
        int8 = sum(ops[op] for op in _INT8_OPS)
        compute = int8 + sum(ops[op] for op in _FLOAT_OPS)
        precision = "int8" if int8 else "fp16" if self._model.precision == "fp16" else "fp32"
        return Placement(shares, precision, compute, int8)

    def close(self) -> None:
        self._session = None


def _texts(name: str, array: Array) -> Array:
    """The engine calls `str()` on what it gets: of bytes that would be their literal."""
    result = np.empty(array.size, dtype=object)
    try:
        result[:] = [v.decode() if isinstance(v, bytes) else str(v) for v in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input '{name}': expected text in UTF-8", cause=str(error)) from None
    return result.reshape(array.shape)


def _create_session(
    model: Path | bytes, provider: str, options: LoadOptions, profile: Path | None = None
) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = options.threads
    if not options.spin:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    engine = {k: v for k, v in options.options.items() if k != "provider"}
    providers: list[Any] = [CPU] if provider == CPU else [(provider, engine), CPU]
    try:
        with _silenced():
            session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                settings,
                providers=providers,
                enable_fallback=0,
            )
    except Exception as error:  # its exception classes share no base but Exception
        raise _load_error(model, provider, error) from error
    if session.get_providers()[0] != provider:
        raise DeviceUnavailable(
            f"onnxruntime cannot open {provider}",
            cause=f"it built a session on {session.get_providers()[0]} instead",
            hint="its libraries or its driver are missing: edgeserve targets shows what opens here",
        )
    return session


def _load_error(model: Path | bytes, provider: str, error: Exception) -> Exception:
    name = model if isinstance(model, Path) else "model"
    text, kind = _one_line(error), type(error).__name__
    if kind in {"NotImplemented", "InvalidGraph"} or "is not a registered function/op" in text:
        return UnsupportedModel(
            f"onnxruntime cannot run {name}",
            cause=text,
            hint="another runtime may run it, or export the model with another opset",
        )
    if kind in {"InvalidProtobuf", "NoSuchFile", "NoModel", "InvalidArgument"} and provider == CPU:
        return SourceError(f"onnxruntime cannot read {name}", cause=text)
    if provider == CPU:
        return UnsupportedModel(f"onnxruntime cannot load {name}", cause=text)
    return DeviceUnavailable(f"onnxruntime cannot open {provider}", cause=text)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """onnxruntime prints and warns about providers; the same text is in our DeviceUnavailable."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)


def _zeros(node: Any) -> Any:
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
             "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8,
             "tensor(int8)": np.int8, "tensor(bool)": np.bool_}  # fmt: skip
    shape = [d if isinstance(d, int) and d > 0 else 1 for d in node.shape]
    return np.zeros(shape, types.get(node.type, np.float32))


def identity_model() -> bytes:
    """A one-node ONNX file (y = Identity(x), x FP32[1], IR 8, opset 17), for probing a provider.

    Serialized by hand so that probing needs no `onnx` package; tests compare it with onnx's own.
    """
    value = b"\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01"
    node = b"\x0a\x01x\x12\x01y\x22\x08Identity"
    graph = _field(1, node) + _field(2, b"g")
    graph += _field(11, _field(1, b"x") + value) + _field(12, _field(1, b"y") + value)
    return b"\x08\x08" + _field(7, graph) + _field(8, b"\x10\x11")


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload
