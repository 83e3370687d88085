"""LiteRT's own accelerators, inside the ai-edge-litert wheel: GPUs by WebGPU (Vulkan, Metal, Direct3D) or
OpenCL, NPUs by a vendor's dispatch library.

`CompiledModel` runs all of a model on the device or refuses it, as it is asked here. What is missing it says
on stderr only.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.bundle import VariantFiles
from edgeserve.bundle.manifest import Option
from edgeserve.devices.names import device_kind
from edgeserve.errors import (
    DeviceUnavailable,
    InferenceFailed,
    SourceError,
    UnsupportedModel,
    one_line,
)
from edgeserve.runtimes.base import LoadOptions, Placement
from edgeserve.runtimes.litert_placement import operators_of, placement_fully_on
from edgeserve.runtimes.litert_ports import in_rows, ports_of
from edgeserve.runtimes.litert_state import Kept, kept_by
from edgeserve.runtimes.native import NativeLog, caught_output
from edgeserve.tensors import Tensors, TensorSpec

_OWN: Final = ("accelerator", "gpu_precision")
_NPU_REGISTERED: Final = "NPU accelerator registered"
_NPU_S: Final = re.compile("npu|NPU|compiler_plugin|shared library")
_PLACE: Final = re.compile(r"(└ )?ERROR: \[[\w./]+:\d+\]|└ ")
# What it says when it has chosen a GPU.
_ADAPTER: Final = re.compile(r"Selected adapter: ([^,\n]+)")
_ENGINE_S: Final = ("INFO:", "WARNING:", "ERROR:", "Warning: vk", "    at Check", "└", "===",
                    "third_party/")  # fmt: skip


class CompiledSession:
    """One compiled model on a GPU or NPU. Calls run one after the other: the engine holds the GIL.

    A batch larger than the file's is run in as many calls as it takes, the last one filled up.
    """

    concurrency = 1

    def __init__(self, engine: Any, model: VariantFiles, device: str, options: LoadOptions) -> None:
        self.device = device
        self.inputs: tuple[TensorSpec, ...] = model.interface.inputs
        self.outputs: tuple[TensorSpec, ...] = model.interface.outputs
        self._model = model
        self._kind = device_kind(device)
        self._precision = _precision(model, self._kind, options.options)
        self._lock = threading.Lock()
        self._first = True
        # The compiled model tells neither scales nor operators: an interpreter that never runs does.
        with caught_output(passes=_is_not_litert_s):
            interpreter = _interpreter(engine, model.path)
        self._inputs, self._outputs = ports_of(interpreter, model)
        self._operators = operators_of(interpreter)
        if kept_by(interpreter, model.content) is not Kept.NOTHING:
            raise UnsupportedModel(
                f"litert cannot serve {model.path.name} on {device}",
                cause="the model keeps a state between calls, which its accelerators cannot reset",
            )
        del interpreter
        self._rows = self._inputs[0].shape[0] if model.interface.max_batch else 0
        self._compiled, log = _compile(model.path, device, self._precision, options.options)
        adapter = _ADAPTER.search(log.text)
        self.hardware = adapter[1].strip() if adapter else None
        self._buffers_in, self._buffers_out = self._make_buffers()

    def _make_buffers(self) -> tuple[list[Any], list[Any]]:
        """Buffers in the order of the interface's tensors."""
        with caught_output(passes=_is_not_litert_s):
            signature = next(iter(self._compiled.get_signature_list()))
            given = self._compiled.get_input_tensor_details(signature)
            made = self._compiled.get_output_tensor_details(signature)
            names_in = {int(d["index"]): name for name, d in given.items()}
            names_out = {int(d["index"]): name for name, d in made.items()}
            create_in = self._compiled.create_input_buffer_by_name
            create_out = self._compiled.create_output_buffer_by_name
            self._signature = signature
            self._names = (
                [names_in[p.index] for p in self._inputs],
                [names_out[p.index] for p in self._outputs],
            )
            # Outputs that the interface leaves out are computed all the same.
            self._spare = {n: create_out(signature, n) for n in made if n not in self._names[1]}
            return (
                [create_in(signature, n) for n in self._names[0]],
                [create_out(signature, n) for n in self._names[1]],
            )

    def run(self, inputs: Tensors) -> Tensors:
        with self._lock:
            try:
                if self._first:
                    # It makes another environment at its first inference, and says so.
                    with caught_output(passes=_is_not_litert_s):
                        outputs = self._run_all(inputs)
                    self._first = False
                    return outputs
                return self._run_all(inputs)
            except (ValueError, RuntimeError, MemoryError) as error:
                raise InferenceFailed(
                    f"litert failed on {self.device}", cause=one_line(error)
                ) from error

    def _run_all(self, inputs: Tensors) -> Tensors:
        return in_rows(self._run_one, inputs, self._rows) if self._rows else self._run_one(inputs)

    def _run_one(self, inputs: Tensors) -> Tensors:
        for port, buffer in zip(self._inputs, self._buffers_in, strict=True):
            array = port.to_file(inputs[port.spec.name])
            if array.shape != port.shape:
                raise ValueError(f"{port.spec.name} has shape {array.shape}, not {port.shape}")
            buffer.write(array)
        self._compiled.run_by_name(
            self._signature,
            dict(zip(self._names[0], self._buffers_in, strict=True)),
            dict(zip(self._names[1], self._buffers_out, strict=True)) | self._spare,
        )
        outputs = {}
        for port, buffer in zip(self._outputs, self._buffers_out, strict=True):
            values = buffer.read(int(np.prod(port.shape)), port.dtype)
            outputs[port.spec.name] = port.from_file(values.reshape(port.shape))
        return outputs

    def placement(self) -> Placement:
        return placement_fully_on(self._kind, self._operators, self._precision)

    def close(self) -> None:
        with self._lock, caught_output(passes=_is_not_litert_s):
            self._buffers_in, self._buffers_out, self._spare = [], [], {}
            self._compiled = None


def _interpreter(engine: Any, path: Path) -> Any:
    try:
        return engine.Interpreter(model_path=str(path), num_threads=1)
    except ValueError as error:
        raise SourceError(f"litert cannot read {path}", cause=one_line(error)) from error


def _precision(model: VariantFiles, kind: str, options: dict[str, Option]) -> str:
    """What floats are computed in. The GPU would take fp16 for everything; fp32 variants were proven in
    fp32, so they get it."""
    if kind != "gpu":
        return model.precision
    asked = options.get("gpu_precision", "fp16" if model.precision == "fp16" else "fp32")
    if asked not in ("fp16", "fp32"):
        raise UnsupportedModel(
            f"litert computes on a GPU in fp16 or fp32, not {asked}", hint='gpu_precision = "fp32"'
        )
    return str(asked)


def _compile(
    path: Path, device: str, precision: str, options: dict[str, Option]
) -> tuple[Any, NativeLog]:
    kind = device_kind(device)
    try:
        from ai_edge_litert.compiled_model import (
            CompiledModel,
            GpuOptions,
            HardwareAccelerator,
            Options,
        )
    except ImportError as error:
        raise DeviceUnavailable(
            f"litert cannot open '{device}'",
            cause=f"the installed engine has no accelerators of its own ({error})",
            hint="pip install 'ai-edge-litert>=2.1', or name a delegate library in the options",
        ) from None
    if unknown := sorted(set(options) - set(_OWN)):
        raise UnsupportedModel(
            f"litert's accelerators do not have an option '{unknown[0]}'",
            hint=f"known: {', '.join(_OWN)}",
        )
    if kind == "gpu":
        chosen = Options(
            HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=precision == "fp32")
        )
    else:
        chosen = Options(HardwareAccelerator.NPU)
    failure = None
    whole = False
    with caught_output(passes=_is_not_litert_s) as log:
        # What the engine made so far goes within the block, since it says so on stderr.
        try:
            compiled = CompiledModel.from_file(str(path), options=chosen)
            whole = compiled.is_fully_accelerated()
        except Exception as error:  # the bindings raise what they like
            failure = one_line(error)
    if failure is not None:
        raise _refused(path, device, failure, log)
    if kind == "npu" and _NPU_REGISTERED not in log.text:
        raise DeviceUnavailable(
            f"litert cannot open '{device}'",
            cause=_said(log, device) or "no NPU accelerator was registered",
            hint="it needs a vendor's dispatch library and driver",
        )
    if not whole:
        raise UnsupportedModel(
            f"litert cannot run all of {path.name} on '{device}'",
            cause=_said(log, device) or "the engine reports that it is not fully accelerated",
        )
    return compiled, log


def _refused(path: Path, device: str, failure: str, log: NativeLog) -> Exception:
    gpu = device_kind(device) == "gpu"
    said = _said(log, device)
    if "not accelerated" in failure and gpu:
        return UnsupportedModel(
            f"litert cannot run all of {path.name} on '{device}'",
            cause=_plain(failure),
            hint="another runtime may run it there; the CPU runs all of it",
        )
    return DeviceUnavailable(
        f"litert cannot open '{device}'",
        cause=f"{said}; {_plain(failure)}" if said and not gpu else said or _plain(failure),
        hint="it needs a GPU with a Vulkan driver and libvulkan.so.1; edgeserve doctor shows more"
        if gpu
        else "it needs a vendor's dispatch library and driver",
    )


def _said(log: NativeLog, device: str) -> str | None:
    """What the engine complains about concerning this kind of device: it always tries both."""
    if device_kind(device) != "gpu":
        return log.complaints()
    mine = NativeLog()
    mine.text = "\n".join(line for line in log.text.splitlines() if not _NPU_S.search(line))
    return mine.complaints()


def _plain(failure: str) -> str:
    return _PLACE.sub("", failure).strip()


def _is_not_litert_s(line: str) -> bool:
    if line.startswith(_ENGINE_S):
        return False
    # Abseil's own: `I0000 00:00:17.25  123 file.cc:7] text`.
    return not (line[:1] in "IWEF" and line[1:5].isdigit() and "] " in line)
