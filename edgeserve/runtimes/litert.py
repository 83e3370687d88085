"""LiteRT (TensorFlow Lite): CPU by XNNPACK, accelerators by a delegate library that the options name.

Its `Interpreter` runs one call at a time, so a session keeps a pool of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.bundle import VariantFiles
from edgeserve.devices import usable_cores
from edgeserve.errors import (
    DependencyMissing,
    DeviceUnavailable,
    EdgeServeError,
    InferenceFailed,
    SourceError,
    UnsupportedModel,
)
from edgeserve.runtimes.base import DeviceInfo, LoadOptions, Placement, RuntimeInfo, Session
from edgeserve.tensors import Array, Tensors, TensorSpec

_COMPUTE_OPS: Final = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D",
                       "FULLY_CONNECTED", "BATCH_MATMUL"}  # fmt: skip
_INT8: Final = (np.dtype(np.int8), np.dtype(np.uint8))
# Models compiled for a delegate hold the compiled part as an operator of this name.
_COMPILED_OPS: Final = {"edgetpu-custom-op"}


class LiteRt:
    """The `litert` runtime: `ai-edge-litert`, or its predecessor `tflite-runtime` where only that is."""

    name = "litert"
    formats: tuple[str, ...] = ("tflite",)
    requires: tuple[str, ...] = ("ai-edge-litert>=2.0",)

    def probe(self) -> RuntimeInfo:
        try:
            module, package = _engine()
        except DependencyMissing as error:
            return RuntimeInfo(self.name, None, problem=error.message, hint=error.hint)
        try:
            number = version(package)
        except PackageNotFoundError:
            number = str(getattr(module, "__version__", "unknown"))
        info = RuntimeInfo(self.name, number, (DeviceInfo("cpu", "XNNPACK"),))
        if package == "ai-edge-litert":
            return info
        return RuntimeInfo(
            info.name,
            info.version,
            info.devices,
            problem="only the old tflite-runtime is installed: int8 runs about 20x slower than it could",
            hint="pip install ai-edge-litert",
        )

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        return LiteRtSession(model, device, options)


def _engine() -> tuple[Any, str]:
    """The module with `Interpreter` and `load_delegate`, and the package it is from."""
    for module, package in (
        ("ai_edge_litert.interpreter", "ai-edge-litert"),
        ("tflite_runtime.interpreter", "tflite-runtime"),
    ):
        try:
            return importlib.import_module(module), package
        except ImportError:
            continue
    raise DependencyMissing("ai-edge-litert", needed_for="the runtime litert", extra="litert")


class LiteRtSession:
    """A pool of interpreters, made as concurrent calls need them; each runs one call at a time.

    A batch larger than the file's is run in as many calls as it takes, the last one filled up.
    """

    def __init__(self, model: VariantFiles, device: str, options: LoadOptions) -> None:
        self.device = device
        self.inputs: tuple[TensorSpec, ...] = model.interface.inputs
        self.outputs: tuple[TensorSpec, ...] = model.interface.outputs
        self._model = model
        self._rows = model.batch if model.interface.max_batch else 0
        instances = max(1, options.instances)
        self._threads = options.threads or max(1, usable_cores() // instances)
        self._delegates = _delegates(model, device, options)
        # A delegate drives one piece of hardware: calls to it queue there anyway.
        spare = 0 if self._delegates else usable_cores() // self._threads
        self.concurrency = max(instances, spare)
        self._idle: queue.LifoQueue[_Instance] = queue.LifoQueue()
        self._unmade = self.concurrency - 1
        self._lock = threading.Lock()
        self._idle.put(self._make())

    def run(self, inputs: Tensors) -> Tensors:
        instance = self._take()
        try:
            if not self._rows:
                return instance.run(inputs)
            return self._run_rows(instance, inputs)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise InferenceFailed(f"litert failed on {self.device}", cause=_text(error)) from error
        finally:
            self._idle.put(instance)

    def _run_rows(self, instance: _Instance, inputs: Tensors) -> Tensors:
        size, step = len(next(iter(inputs.values()))), self._rows
        parts: list[Tensors] = []
        for start in range(0, size, step):
            part = {name: array[start : start + step] for name, array in inputs.items()}
            missing = step - len(next(iter(part.values())))
            if missing:
                part = {n: np.concatenate([a, a[-1:].repeat(missing, 0)]) for n, a in part.items()}
            parts.append(instance.run(part))
        if len(parts) == 1 and size == step:
            return parts[0]
        return {s.name: np.concatenate([p[s.name] for p in parts])[:size] for s in self.outputs}

    def placement(self) -> Placement:
        """Read from the file's operators. What a delegate takes of an uncompiled model LiteRT does not
        tell: with one, all of it counts as the delegate's unless the file holds a compiled part."""
        instance = self._take()
        try:
            return instance.placement(self.device, self._model.precision, bool(self._delegates))
        finally:
            self._idle.put(instance)

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get()
        self._delegates = []

    def _take(self) -> _Instance:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            with self._lock:
                make = self._unmade > 0
                self._unmade -= make
        return self._make() if make else self._idle.get()

    def _make(self) -> _Instance:
        try:
            with _without_greeting():
                return _Instance(self._model, self._threads, self._delegates)
        except EdgeServeError:
            raise
        except Exception as error:
            raise _load_error(self._model, error) from error


_GREETING: Final = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
_greeted = False
_greeting_lock = threading.Lock()


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """LiteRT greets on stderr when the first interpreter of a process is made, and has no switch for it.

    What else is written meanwhile is passed on afterwards.
    """
    global _greeted
    with _greeting_lock:
        if _greeted:
            skip = True
        else:
            skip, _greeted = False, True
            with tempfile.TemporaryFile() as caught, _stderr_into(caught.fileno()):
                yield
    if skip:
        yield


@contextlib.contextmanager
def _stderr_into(descriptor: int) -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed: nobody reads it
        yield
        return
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(os.dup(descriptor), "rb") as written:
            rest = written.read().replace(_GREETING, b"")
        os.write(kept, rest)
        os.close(kept)


class _Instance:
    """One interpreter, and how the interface's tensors are called, laid out and scaled in its file."""

    def __init__(self, model: VariantFiles, threads: int, delegates: list[Any]) -> None:
        module, _ = _engine()
        self._interpreter = module.Interpreter(
            model_path=str(model.path), num_threads=threads, experimental_delegates=delegates
        )
        names = _signature_names(self._interpreter)
        inputs = _by_name(self._interpreter.get_input_details(), names.get("inputs", {}))
        outputs = _by_name(self._interpreter.get_output_details(), names.get("outputs", {}))
        self._inputs = [_Port(s, model, inputs, "input") for s in model.interface.inputs]
        self._outputs = [_Port(s, model, outputs, "output") for s in model.interface.outputs]
        self._interpreter.allocate_tensors()

    def run(self, inputs: Tensors) -> Tensors:
        arrays = [port.to_file(inputs[port.spec.name]) for port in self._inputs]
        self._fit(arrays)
        for port, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(port.index, array)
        self._interpreter.invoke()
        # get_tensor copies: the results stay what they are when the interpreter runs again.
        return {
            port.spec.name: port.from_file(self._interpreter.get_tensor(port.index))
            for port in self._outputs
        }

    def _fit(self, arrays: list[Array]) -> None:
        """Resize inputs whose shape differs from the last call's."""
        if all(p.shape == a.shape for p, a in zip(self._inputs, arrays, strict=True)):
            return
        for port, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.resize_tensor_input(port.index, array.shape, strict=True)
            port.shape = array.shape
        self._interpreter.allocate_tensors()

    def placement(self, device: str, precision: str, delegated: bool) -> Placement:
        ops = [o for o in self._interpreter._get_ops_details() if o["op_name"] != "DELEGATE"]
        types = {d["index"]: np.dtype(d["dtype"]) for d in self._interpreter.get_tensor_details()}
        compute = [o for o in ops if o["op_name"] in _COMPUTE_OPS]
        # The second input is the weights: int8 there also with float activations (dynamic int8).
        int8 = sum(types.get(int(o["inputs"][1])) in _INT8 for o in compute)
        kind = device.partition(".")[0]
        compiled = sum(o["op_name"] in _COMPILED_OPS for o in ops)
        shares = {kind: 1.0}
        if delegated and compiled and compiled < len(ops):
            shares = {kind: compiled / len(ops), "cpu": 1 - compiled / len(ops)}
        label = "int8" if int8 or compiled else "fp16" if precision == "fp16" else "fp32"
        return Placement(shares, label, len(compute) + compiled, int8 + compiled)


class _Port:
    """One input or output: the way from the interface's tensor to the file's, and back."""

    def __init__(
        self, spec: TensorSpec, model: VariantFiles, details: Mapping[str, Any], kind: str
    ) -> None:
        binding = model.binding(spec.name)
        detail = details.get(binding.name)
        if detail is None:
            raise UnsupportedModel(
                f"litert cannot serve {model.path.name}",
                cause=f"it has no {kind} '{binding.name}', only {', '.join(details)}",
            )
        self.spec = spec
        self.index = int(detail["index"])
        self.shape = tuple(int(d) for d in detail["shape"])
        self._dtype = np.dtype(detail["dtype"])
        self._scale, self._zero = detail["quantization"]
        self._order = binding.permutation
        self._back = tuple(int(i) for i in np.argsort(self._order)) if self._order else None
        self._quantized = self._scale != 0.0 and spec.numpy_dtype.kind == "f"

    def to_file(self, array: Array) -> Array:
        if self._order:
            array = array.transpose(self._order)
        if self._quantized and self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            steps = np.rint(array / np.float32(self._scale)) + self._zero
            array = np.clip(steps, limits.min, limits.max)
        return np.ascontiguousarray(array, self._dtype)

    def from_file(self, array: Array) -> Array:
        if self._quantized and array.dtype.kind in "iu":
            array = (array.astype(np.float32) - np.float32(self._zero)) * np.float32(self._scale)
        if self._back:
            array = array.transpose(self._back)
        return np.ascontiguousarray(array, self.spec.numpy_dtype)


def _signature_names(interpreter: Any) -> dict[str, dict[str, int]]:
    """Names of a file's signature: TensorFlow's exporter calls the tensors themselves otherwise."""
    lists = interpreter._get_full_signature_list() or {}
    return next(iter(lists.values()), {})


def _by_name(details: list[Any], names: Mapping[str, int]) -> dict[str, Any]:
    by_index = {d["index"]: d for d in details}
    found = {d["name"]: d for d in details}
    found.update({n: by_index[i] for n, i in names.items() if i in by_index})
    return found


def _delegates(model: VariantFiles, device: str, options: LoadOptions) -> list[Any]:
    """The delegate that opens `device`; none for the CPU unless the options name one."""
    module, _ = _engine()
    library = options.options.get("delegate")
    if library is None:
        if device.partition(".")[0] == "cpu":
            return []
        raise DeviceUnavailable(
            f"litert cannot open '{device}'",
            cause="it opens devices other than the CPU by a delegate library, and none is named",
            hint='name it in the candidate\'s options: delegate = "libedgetpu.so.1"',
        )
    rest = {k: v for k, v in options.options.items() if k != "delegate"}
    try:
        ctypes.CDLL(str(library))  # a Delegate that cannot load it prints a traceback when it goes
        return [module.load_delegate(str(library), rest)]
    except (OSError, ValueError) as error:
        raise DeviceUnavailable(
            f"litert cannot open '{device}' by {library}",
            cause=_text(error),
            hint="install the delegate's library, or name its full path",
        ) from error


def _load_error(model: VariantFiles, error: Exception) -> EdgeServeError:
    text = _text(error)
    path: Path = model.path
    if "custom op" in text or "Select TensorFlow op" in text:
        return UnsupportedModel(
            f"litert cannot run {path.name}",
            cause=text,
            hint="another runtime may run it, or export the model without that operator",
        )
    if isinstance(error, ValueError):
        return SourceError(f"litert cannot read {path}", cause=text)
    return UnsupportedModel(f"litert cannot load {path.name}", cause=text)


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)
