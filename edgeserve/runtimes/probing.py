"""Really opening a device, with the smallest model there is, to learn what the engine says."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from edgeserve.bundle import VariantFiles
from edgeserve.errors import EdgeServeError
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.runtimes.onnxruntime import identity_model
from edgeserve.targets import ChainEntry
from edgeserve.tensors import Interface, TensorSpec

# y = ReLU(x), x FP32[1], as OpenVINO IR.
_OPENVINO_IR: Final = b"""<?xml version="1.0"?>
<net name="probe" version="11">
  <layers>
    <layer id="0" name="x" type="Parameter" version="opset1">
      <data shape="1" element_type="f32"/>
      <output><port id="0" precision="FP32" names="x"><dim>1</dim></port></output>
    </layer>
    <layer id="1" name="relu" type="ReLU" version="opset1">
      <input><port id="0"><dim>1</dim></port></input>
      <output><port id="1" precision="FP32" names="y"><dim>1</dim></port></output>
    </layer>
    <layer id="2" name="y" type="Result" version="opset1">
      <input><port id="0"><dim>1</dim></port></input>
    </layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
    <edge from-layer="1" from-port="1" to-layer="2" to-port="0"/>
  </edges>
</net>
"""
_INTERFACE: Final = Interface(
    (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),), max_batch=0
)


def opening_error(entry: ChainEntry) -> EdgeServeError | None:
    """Open this entry's device and close it again; what the engine said when that failed.

    None when it opened, or when no probe model is at hand in a format the runtime reads.
    """
    models = {"onnx": ("probe.onnx", identity_model()), "openvino-ir": ("probe.xml", _OPENVINO_IR)}
    adapter = runtime(entry.runtime)
    kind = next((kind for kind in adapter.formats if kind in models), None)
    if kind is None:
        return None
    name, data = models[kind]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        model = VariantFiles("probe", file, kind, "fp32", _INTERFACE, batch=1)
        try:
            adapter.load(model, entry.device, LoadOptions(options=entry.options)).close()
        except EdgeServeError as error:
            return error
    return None
