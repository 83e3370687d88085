"""How large a network's values get on real samples: FP16 ends at 65504, and no CPU shows it, since engines
compute FP16 in FP32 there."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.evaluate import Samples
from edgeserve.quantize.onnx_tools import is_large, quantization, silenced

_FLOAT: Final = 1  # onnx.TensorProto.FLOAT
# Other samples reach further than those that were looked at.
FP16_MOST: Final = 65504.0 / 2
_SAMPLES: Final = 8
_TAG: Final = "::largest"


def beyond_fp16(model: Path, samples: Samples, work: Path) -> dict[str, float]:
    """The values of an FP32 ONNX file, by name, whose largest magnitude on the first samples is too near the
    end of FP16 or beyond it.

    Values whose type cannot be inferred are not looked at; infinities that the model means are none.
    Raises what onnxruntime raises.
    """
    import onnxruntime

    onnx = quantization().onnx
    proto = onnx.load_model(str(model))
    names = _floats(onnx, proto)
    for name in names:
        nodes = [
            onnx.helper.make_node("Abs", [name], [f"{name}::size"]),
            onnx.helper.make_node("ReduceMax", [f"{name}::size"], [f"{name}{_TAG}"], keepdims=0),
        ]
        proto.graph.node.extend(nodes)
        proto.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}{_TAG}", _FLOAT, []))
    watched = work / "watched.onnx"
    onnx.save_model(
        proto, str(watched), save_as_external_data=is_large(model), location="watched.data"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with silenced():
        session = onnxruntime.InferenceSession(
            str(watched), options, providers=["CPUExecutionProvider"]
        )
    largest = np.zeros(len(names))
    for request in islice(samples, _SAMPLES):
        found = np.asarray(session.run([f"{n}{_TAG}" for n in names], request), np.float64).ravel()
        largest = np.maximum(largest, np.where(np.isfinite(found), found, 0.0))
    for file in (watched, work / "watched.data"):
        file.unlink(missing_ok=True)
    # A mask's lowest float stands for infinity, and stays that.
    meant = 1e30
    return {n: float(v) for n, v in zip(names, largest, strict=True) if FP16_MOST < v < meant}


def _floats(onnx: Any, proto: Any) -> list[str]:
    """Outputs of nodes that are FP32 tensors, of those outside inner graphs, and may not be empty."""
    types: dict[str, int] = {}
    if proto.ByteSize() < 2**31:
        inferred = onnx.shape_inference.infer_shapes(proto)
        types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in proto.graph.output}
    written = [name for node in proto.graph.node for name in node.output]
    return [name for name in written if types.get(name) == _FLOAT]
