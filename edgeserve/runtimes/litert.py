"""LiteRT (TensorFlow Lite): CPU by XNNPACK, accelerators by its own (`litert_compiled`) or by a delegate
library that the options name.

Its `Interpreter` runs one call at a time, so a session keeps a pool of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import queue
import sys
import threading
from collections.abc import Iterator
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from edgeserve.bundle import VariantFiles
from edgeserve.devices import usable_cores
from edgeserve.devices.names import device_kind
from edgeserve.errors import (
    DependencyMissing,
    DeviceUnavailable,
    EdgeServeError,
    InferenceFailed,
    SourceError,
    UnsupportedModel,
    one_line,
)
from edgeserve.runtimes.base import DeviceInfo, LoadOptions, Placement, RuntimeInfo, Session
from edgeserve.runtimes.litert_compiled import CompiledSession
from edgeserve.runtimes.litert_detections import clear_unused, detection_heads
from edgeserve.runtimes.litert_placement import (
    LiteRtOperator,
    operators_of,
    placement_fully_on,
    placement_on,
)
from edgeserve.runtimes.litert_ports import in_rows, ports_of
from edgeserve.runtimes.litert_state import Kept, kept_by
from edgeserve.runtimes.native import caught_output, environment_key
from edgeserve.tensors import Array, Tensors, TensorSpec

_GREETING: Final = "INFO: Created TensorFlow Lite XNNPACK delegate for CPU."


class LiteRt:
    """The `litert` runtime: `ai-edge-litert`, or its predecessor `tflite-runtime` where only that is."""

    name = "litert"
    reads_contents = True
    formats: tuple[str, ...] = ("tflite",)
    requires: tuple[str, ...] = ("ai-edge-litert>=2.0",)

    def version(self) -> str | None:
        """Without opening anything."""
        try:
            module, package = _engine()
        except DependencyMissing:
            return None
        try:
            return version(package)
        except PackageNotFoundError:
            return str(getattr(module, "__version__", "unknown"))

    def probe(self) -> RuntimeInfo:
        try:
            _, package = _engine()
        except DependencyMissing as error:
            return RuntimeInfo(self.name, None, problem=error.message, hint=error.hint)
        number = self.version()
        cpu = DeviceInfo("cpu", "XNNPACK")
        if package == "ai-edge-litert":
            found, problem = accelerators()
            return RuntimeInfo(self.name, number, (cpu, *found), problem=problem)
        return RuntimeInfo(
            self.name,
            number,
            (cpu,),
            problem="only the old tflite-runtime is installed: int8 runs about 20x slower than it could",
            hint="pip install ai-edge-litert",
        )

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        if device_kind(device) != "cpu" and "delegate" not in options.options:
            return CompiledSession(_engine()[0], model, device, options)
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


def accelerators() -> tuple[tuple[DeviceInfo, ...], str | None]:
    """The devices that LiteRT's own accelerators open here, really opened, and what keeps others from it.

    Only what could be there is tried: a GPU where a Vulkan loader is, an NPU where a driver's node is.
    """
    return _accelerators(environment_key())


@cache
def _accelerators(environment: str) -> tuple[tuple[DeviceInfo, ...], str | None]:
    from edgeserve.runtimes.probing import open_in_child

    found, problems = [], []
    for device, worth_trying in (("gpu", _has_gpu_loader()), ("npu", _has_npu_node())):
        if not worth_trying:
            continue
        probe = open_in_child("litert", device, {})
        if probe.ok:
            found.append(DeviceInfo(device, "WebGPU" if device == "gpu" else "NPU", probe.hardware))
        else:
            problems.append(probe.error or "it does not open")
    return tuple(found), "; ".join(problems) or None


def _has_gpu_loader() -> bool:
    spec = importlib.util.find_spec("ai_edge_litert")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not any(folder.glob("libLiteRt*GpuAccelerator.*")):
        return False
    if sys.platform != "linux":
        return True
    for name in ("libvulkan.so.1", "libOpenCL.so", "libOpenCL.so.1"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _has_npu_node() -> bool:
    return any(Path("/dev/accel").glob("accel*"))


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
        # Shared by all interpreters, and by those that are made later: a mapped file may be overwritten.
        self._content = model.content()
        self._idle: queue.LifoQueue[_Instance] = queue.LifoQueue()
        self._unmade = self.concurrency - 1
        self._lock = threading.Lock()
        self._idle.put(self._make())

    def run(self, inputs: Tensors) -> Tensors:
        instance = self._take()
        try:
            if not self._rows:
                return instance.run(inputs)
            return in_rows(instance.run, inputs, self._rows)
        except EdgeServeError:
            raise
        except Exception as error:
            raise InferenceFailed(
                f"litert failed on {self.device}", cause=one_line(error)
            ) from error
        finally:
            self._idle.put(instance)

    def placement(self) -> Placement:
        """Read from the file's operators. With a delegate that takes another interpreter, where nothing
        but the delegate takes any."""
        if self._delegates:
            alone = _Instance(
                self._model, self._content, 1, self._delegates, default_delegates=False
            )
            kind = device_kind(self.device)
            return placement_on(kind, alone.operators(), self._model.precision)
        instance = self._take()
        try:
            return placement_fully_on("cpu", instance.operators(), self._model.precision)
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
                return _Instance(self._model, self._content, self._threads, self._delegates)
        except EdgeServeError:
            raise
        except Exception as error:
            raise _load_error(self._model, error) from error


_greeted = False
_greeting_lock = threading.Lock()


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """LiteRT greets on stderr when the first interpreter of a process is made, and has no switch for it."""
    global _greeted
    with _greeting_lock:
        if _greeted:
            skip = True
        else:
            skip, _greeted = False, True
            with caught_output(passes=lambda line: line.rstrip() != _GREETING):
                yield
    if skip:
        yield


class _Instance:
    """One interpreter, and how the interface's tensors are called, laid out and scaled in its file.

    Every run starts from the file's initial state.
    """

    def __init__(
        self,
        model: VariantFiles,
        content: bytes,
        threads: int,
        delegates: list[Any],
        *,
        default_delegates: bool = True,
    ) -> None:
        module, _ = _engine()
        resolver = module.OpResolverType
        self._make = partial(
            module.Interpreter,
            model_content=content,
            num_threads=threads,
            experimental_delegates=delegates,
            experimental_op_resolver_type=resolver.AUTO
            if default_delegates
            else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._model = model
        self._open()
        self._kept = kept_by(self._interpreter, lambda: content)
        self._used = False

    def _open(self) -> None:
        self._interpreter = self._make()
        self._inputs, self._outputs = ports_of(self._interpreter, self._model)
        self._interpreter.allocate_tensors()
        self._heads = detection_heads(self._interpreter)

    def _forget(self) -> None:
        """Go back to the initial state."""
        if self._kept is Kept.RESOURCES:
            self._open()
        else:
            self._interpreter.reset_all_variables()

    def run(self, inputs: Tensors) -> Tensors:
        if self._kept is not Kept.NOTHING:
            if self._used:
                self._forget()
            self._used = True
        arrays = [port.to_file(inputs[port.spec.name]) for port in self._inputs]
        self._fit(arrays)
        for port, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(port.index, array)
        self._interpreter.invoke()
        given = {p.index: self._interpreter.get_tensor(p.index) for p in self._outputs}
        if self._heads:
            clear_unused(given, self._heads)
        # get_tensor copies: the results stay what they are when the interpreter runs again.
        return {port.spec.name: port.from_file(given[port.index]) for port in self._outputs}

    def _fit(self, arrays: list[Array]) -> None:
        """Resize inputs whose shape differs from the last call's."""
        if all(p.shape == a.shape for p, a in zip(self._inputs, arrays, strict=True)):
            return
        for port, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.resize_tensor_input(port.index, array.shape, strict=True)
            port.shape = array.shape
        self._interpreter.allocate_tensors()

    def operators(self) -> list[LiteRtOperator]:
        return operators_of(self._interpreter)


def _delegates(model: VariantFiles, device: str, options: LoadOptions) -> list[Any]:
    """The delegate that opens `device`; none for the CPU unless the options name one."""
    module, _ = _engine()
    library = options.options.get("delegate")
    if library is None:
        return []
    rest = {k: v for k, v in options.options.items() if k != "delegate"}
    try:
        ctypes.CDLL(str(library))  # a Delegate that cannot load it prints a traceback when it goes
        return [module.load_delegate(str(library), rest)]
    except (OSError, ValueError) as error:
        raise DeviceUnavailable(
            f"litert cannot open '{device}' by {library}",
            cause=one_line(error),
            hint="install the delegate's library, or name its full path",
        ) from error


def _load_error(model: VariantFiles, error: Exception) -> EdgeServeError:
    text = one_line(error)
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
