"""OpenVINO: CPU, GPU and NPU of one machine, each opened by name and never through AUTO or MULTI,
which quietly run on the CPU when the device is missing."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np

from edgeserve import telemetry
from edgeserve.bundle import VariantFiles
from edgeserve.devices.names import device_kind
from edgeserve.errors import (
    DependencyMissing,
    DeviceUnavailable,
    EdgeServeError,
    InferenceFailed,
    SourceError,
    UnsupportedModel,
)
from edgeserve.runtimes.base import DeviceInfo, LoadOptions, Placement, RuntimeInfo, Session
from edgeserve.runtimes.narrowing import beyond, fits_in
from edgeserve.runtimes.openvino_cache import cache_folder, forget_compiled
from edgeserve.runtimes.openvino_placement import Layer, macs_of, placement_of
from edgeserve.runtimes.openvino_pool import Pool
from edgeserve.tensors import Tensors, TensorSpec

_NAMES: Final = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
# Options of this adapter; all others go to the engine.
_OWN: Final = ("inference_precision", "cache")
# Types that every plug-in computes in INT32: larger values are clamped without a word.
_NARROWED: Final = ("INT64", "UINT64", "UINT32")
_INT32: Final = np.dtype(np.int32)
_BORDERS: Final = {"Input", "Output", "Const", "Parameter", "Result", "Constant"}


class OpenVino:
    """The `openvino` runtime."""

    name = "openvino"
    reads_contents = True
    formats: tuple[str, ...] = ("openvino-ir",)
    requires: tuple[str, ...] = ("openvino>=2025.0",)

    def probe(self) -> RuntimeInfo:
        try:
            core = _core()
        except DependencyMissing as error:
            return RuntimeInfo(self.name, None, problem=error.message, hint=error.hint)
        from openvino import __version__

        devices = []
        for full in core.available_devices:
            kind, _, index = full.partition(".")
            device = kind.lower() + (f".{index}" if index not in ("", "0") else "")
            devices.append(DeviceInfo(device, str(core.get_property(full, "FULL_DEVICE_NAME"))))
        return RuntimeInfo(self.name, __version__.partition("-")[0], tuple(devices))

    def version(self) -> str | None:
        """Without opening anything."""
        telemetry.refuse()
        try:
            from openvino import __version__
        except ImportError:
            return None
        return str(__version__).partition("-")[0]

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        return OpenVinoSession(model, device, options)

    def forget(self, model: VariantFiles, device: str, options: LoadOptions) -> None:
        """Have the next `load` compile the model, whatever is cached of it."""
        forget_compiled(model, _engine_name(device), options)


@cache
def _core() -> Any:
    telemetry.refuse()
    try:
        import openvino
    except ImportError:
        raise DependencyMissing(
            "openvino", needed_for="the runtime openvino", extra="openvino"
        ) from None
    return openvino.Core()


class OpenVinoSession:
    """A compiled model with a pool of `instances` infer requests, one stream each.

    Compiled for a static batch of one, it runs larger batches row by row: on CPUs that costs less than
    dynamic shapes do. For each size in `batches` it is compiled once more, and rows are run so many at a
    time as long as there are so many.
    """

    def __init__(self, model: VariantFiles, device: str, options: LoadOptions) -> None:
        self.device = device
        self.hardware: str | None = None
        self._model = model
        self.inputs: tuple[TensorSpec, ...] = model.interface.inputs
        self.outputs: tuple[TensorSpec, ...] = model.interface.outputs
        self.concurrency = max(1, options.instances)
        try:
            self._open(model, device, options)
        except EdgeServeError:
            raise
        except Exception as error:  # shapes that do not propagate, tensors that the file lacks
            raise UnsupportedModel(
                f"openvino cannot open '{model.id}' on '{device}'", cause=_reason(error)
            ) from error

    def _open(self, model: VariantFiles, device: str, options: LoadOptions) -> None:
        batched = model.interface.max_batch > 0
        network = _read(model)
        self._rows = batched and (options.static_shapes or model.batch == 1)
        if self._rows:
            _fix_batch(network, model, 1)
        self._pool = Pool(_compile(network, model, device, options), model, self.concurrency)
        self._larger: list[tuple[int, Pool]] = []
        if self._rows and model.batch == 0:
            sizes = {n for n in options.batches if 1 < n <= model.interface.max_batch}
            for size in sorted(sizes, reverse=True):
                _fix_batch(network, model, size)
                compiled = _compile(network, model, device, options)
                self._larger.append((size, Pool(compiled, model, self.concurrency)))
        self.hardware = _full_name(device)
        self._wide = tuple(
            s.name for s in self.inputs if s.dtype in _NARROWED and s.name in self._pool.inputs
        )

    def run(self, inputs: Tensors) -> Tensors:
        for name in self._wide:
            if not fits_in(inputs[name], _INT32):
                raise beyond("openvino", name, _INT32)
        rows = len(next(iter(inputs.values()))) if self._rows else 1
        try:
            return self._pool.run(inputs) if rows == 1 else self._run_rows(inputs, rows)
        except Exception as error:
            raise InferenceFailed(
                f"openvino failed on {self.device}", cause=_reason(error)
            ) from error

    def _run_rows(self, inputs: Tensors, rows: int) -> Tensors:
        parts, start = [], 0
        for size, pool in (*self._larger, (1, self._pool)):
            while rows - start >= size:
                parts.append(pool.run({n: a[start : start + size] for n, a in inputs.items()}))
                start += size
        return {s.name: np.concatenate([p[s.name] for p in parts]) for s in self.outputs}

    def placement(self) -> Placement:
        """Raises RuntimeError where the engine does not tell."""
        precision = self._pool.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        try:
            layers = [op.get_rt_info() for op in self._pool.compiled.get_runtime_model().get_ops()]
        except RuntimeError:  # an NPU's compiled blob does not tell what is inside
            layers = []
        ran = [layer for layer in map(_layer, layers) if layer.kind not in _BORDERS]
        return placement_of(ran, self.device, precision, self._work())

    def _work(self) -> dict[str, int]:
        """Multiply-accumulates by the model's own operations; needs the file once more."""
        network = _read(self._model)
        if self._rows:
            _fix_batch(network, self._model, 1)
        return macs_of(network)

    def close(self) -> None:
        for _, pool in (*self._larger, (1, self._pool)):
            pool.close()


def _read(model: VariantFiles) -> Any:
    core = _core()
    try:
        if not model.is_sealed or model.path.suffix != ".xml":
            return core.read_model(model.path)
        # Not from the path: OpenVINO maps the weights, which may be overwritten while it runs.
        return core.read_model(model.content().decode(), _weights(model))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise SourceError(f"openvino cannot read {model.path}", cause=_reason(error)) from error


def _weights(model: VariantFiles) -> Any:
    """A tensor of the engine's own, freed when no operation refers to it any more."""
    import openvino

    found = [path for path in model.others() if path.suffix == ".bin"]
    content = np.frombuffer(model.content(found[0]) if found else b"", np.uint8)
    tensor = openvino.Tensor(openvino.Type.u8, [content.size])
    tensor.data[:] = content
    return tensor


def _fix_batch(network: Any, model: VariantFiles, size: int) -> None:
    """Fix the batch dimension; other dynamic dimensions stay as they are."""
    import openvino

    shapes = {}
    for spec in model.interface.inputs:
        name = model.binding(spec.name).name
        if not any(name in port.get_names() for port in network.inputs):
            continue  # nothing reads it: the conversion dropped it
        shape = network.input(name).get_partial_shape()
        shape[0] = openvino.Dimension(size)
        shapes[name] = shape
    network.reshape(shapes)


def _compile(network: Any, model: VariantFiles, device: str, options: LoadOptions) -> Any:
    kind, name = device_kind(device), _engine_name(device)
    engine: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if kind == "cpu":
        # Left to itself OpenVINO computes fp32 models in bf16 where the CPU can.
        engine["INFERENCE_PRECISION_HINT"] = _cpu_precision(model)
        engine["NUM_STREAMS"] = str(max(1, options.instances))
        # Each compiled model pins its threads to cores from the first one on, whatever runs there: two
        # models of one thread each would share one core.
        engine["ENABLE_CPU_PINNING"] = "NO"
        if options.threads:
            engine["INFERENCE_NUM_THREADS"] = str(options.threads * max(1, options.instances))
    if folder := cache_folder(model, name, options):
        engine["CACHE_DIR"] = str(folder)
    precision = options.options.get("inference_precision")
    if precision is not None:
        engine["INFERENCE_PRECISION_HINT"] = str(precision)
    engine |= {k: str(v) for k, v in options.options.items() if k not in _OWN}
    core = _core()
    try:
        return core.compile_model(network, name, engine)
    except RuntimeError as error:
        if device_kind(name) not in {device_kind(d) for d in core.available_devices}:
            raise DeviceUnavailable(
                f"openvino cannot open '{device}'",
                cause=_reason(error),
                hint=f"devices that open here: {', '.join(core.available_devices)}; "
                "a GPU or NPU needs its driver (docs/targets.md)",
            ) from error
        raise UnsupportedModel(
            f"openvino cannot compile '{model.id}' for '{device}'", cause=_reason(error)
        ) from error


def _cpu_precision(model: VariantFiles) -> str:
    if model.precision != "bf16":
        return "f32"
    if "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise DeviceUnavailable(
            f"this CPU does not compute in bf16, as '{model.id}' wants",
            hint="bf16 needs AVX512-BF16 or AMX; convert with another --precision",
        )
    return "bf16"


def _layer(info: Any) -> Layer:
    originals = _text(info, "originalLayersNames")
    return Layer(
        kind=_text(info, "layerType"),
        precision=_text(info, "runtimePrecision").lower(),
        implementation=_text(info, "primitiveType"),
        originals=tuple(name for name in originals.split(",") if name),
    )


def _text(info: Any, key: str) -> str:
    if key not in info:
        return ""
    return str(info[key].astype(str)) if hasattr(info[key], "astype") else str(info[key])


def _full_name(device: str) -> str | None:
    try:
        return str(_core().get_property(_engine_name(device), "FULL_DEVICE_NAME"))
    except RuntimeError:
        return None


def _engine_name(device: str) -> str:
    """OpenVINO's name: `gpu.1` is `GPU.1`."""
    kind, _, index = device.partition(".")
    return _NAMES[kind] + (f".{index}" if index else "")


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message that is not a source location."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [repr(error)])[-1]
