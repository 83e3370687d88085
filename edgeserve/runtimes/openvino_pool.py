"""One compiled OpenVINO model, and what it takes to call it: infer requests, tensors in, arrays out."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from edgeserve.bundle import VariantFiles
from edgeserve.tensors import Array, Tensors, TensorSpec


class Pool:
    """A compiled model with `count` infer requests; as many threads may call it at one time.

    Every call starts from the model's initial state, where it keeps one (ReadValue, Assign). Raises
    RuntimeError, the engine's own, from every method.
    """

    def __init__(self, compiled: Any, model: VariantFiles, count: int) -> None:
        self.compiled = compiled
        interface = model.interface
        given = [
            (s.name, compiled.input(model.binding(s.name).name)) for s in _kept(compiled, model)
        ]
        self.inputs = frozenset(name for name, _ in given)  # without those that were dropped
        taken = [(s, compiled.output(model.binding(s.name).name)) for s in interface.outputs]
        self._given = [(n, compiled.inputs.index(port), _Tensors(port)) for n, port in given]
        # The engine hands out bf16 as if it were fp16.
        self._taken = [
            (s.name, compiled.outputs.index(port), s.numpy_dtype if s.dtype == "BF16" else None)
            for s, port in taken
        ]
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(count):
            request = compiled.create_infer_request()
            self._requests.put(request)
        try:
            self._keeps = bool(request.query_state())
        except RuntimeError:  # a plug-in that knows no variables compiles no model with them
            self._keeps = False

    def run(self, inputs: Tensors) -> Tensors:
        request = self._requests.get()
        try:
            if self._keeps:
                request.reset_state()
            # Handing the inputs to `infer` takes it longer than all else that it does in Python.
            for name, index, tensors in self._given:
                request.set_input_tensor(index, tensors.of(inputs[name]))
            values = request.infer(share_outputs=True).to_tuple()
            # The engine overwrites its outputs at the next call: copy before giving the request back.
            return {
                name: values[index].copy() if bits is None else values[index].view(bits).copy()
                for name, index, bits in self._taken
            }
        finally:
            self._requests.put(request)

    def close(self) -> None:
        while not self._requests.empty():
            self._requests.get()
        self.compiled = None


def _kept(compiled: Any, model: VariantFiles) -> list[TensorSpec]:
    """The interface's inputs that the compiled model has. A conversion drops those that nothing reads.

    All of them where the compiled model has others instead: then looking one up tells the name it lacks.
    """
    names = [port.get_names() for port in compiled.inputs]
    inputs = model.interface.inputs
    kept = [s for s in inputs if any(model.binding(s.name).name in found for found in names)]
    return kept if len(kept) == len(names) else list(inputs)


class _Tensors:
    """The engine's tensors for one input."""

    def __init__(self, port: Any) -> None:
        import openvino

        self._make = openvino.Tensor
        self._type = port.element_type
        self._dtype = None if self._type == openvino.Type.bf16 else self._type.to_dtype()

    def of(self, array: Array) -> Any:
        """On the array itself where the engine can read it there; else on a copy."""
        if self._dtype is None:
            return self._make(np.array(array), array.shape, self._type)  # numpy knows no bf16
        flags = array.flags
        if array.dtype != self._dtype or not (flags.c_contiguous and flags.writeable):
            array = np.array(array, self._dtype, order="C")
        return self._make(array, True)
