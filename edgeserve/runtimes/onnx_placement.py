"""What runs where in an onnxruntime session, read from its profile of one inference.

The profile names the provider of every kernel. It does not tell how much work a kernel is where weights
were packed, nor what is inside a subgraph that a provider compiled: that is read from a profile of the
same model on the CPU, with nothing packed and nothing fused for speed.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.bundle.manifest import Option
from edgeserve.devices.names import device_kind
from edgeserve.runtimes.base import Placement, shares_of
from edgeserve.runtimes.onnx_providers import CPU
from edgeserve.tensors import Tensors

INT8_OPS: Final = {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger",
                   "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "NhwcQLinearConv"}  # fmt: skip
FLOAT_OPS: Final = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "Gemm",
                    "FusedMatMul", "FusedGemm", "MatMulNBits"}  # fmt: skip
# Providers that compile whole subgraphs and compute QDQ models in integers, as their documentation says.
_COMPILING: Final = {
    "QNNExecutionProvider",
    "OpenVINOExecutionProvider",
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
    "VitisAIExecutionProvider",
    "CoreMLExecutionProvider",
    "MIGraphXExecutionProvider",
}
# onnxruntime renames what it moves to another memory layout.
_RENAMED: Final = re.compile(r"(_token_\d+|_nhwc|/MatMulAddFusion)+$")
_COPIES: Final = {"MemcpyToHost", "MemcpyFromHost"}
_DTYPES: Final[dict[str, Any]] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(bool)": np.bool_,
}  # fmt: skip


class Kernel(msgspec.Struct, frozen=True):
    """One kernel that ran. `macs` is None where its shapes do not tell."""

    name: str
    op: str
    provider: str
    input_type: str | None
    macs: int | None


class ProfileFile:
    """The profile that a session writes, in a folder of its own. Owns the folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgeserve-profile-")
        self.prefix = str(Path(self._folder.name) / "profile")

    def finish(self, session: Any) -> list[Kernel]:
        """End profiling and read what ran; the folder is gone afterwards."""
        try:
            return read_profile(Path(session.end_profiling()).read_bytes())
        except (OSError, ValueError):
            return []
        finally:
            self.close()

    def close(self) -> None:
        self._folder.cleanup()


def profile_file() -> ProfileFile | None:
    """None where nothing can be written."""
    with contextlib.suppress(OSError):
        return ProfileFile()
    return None


def read_profile(data: bytes) -> list[Kernel]:
    """The kernels of a profile, in the order they ran. Raises ValueError."""
    found = []
    for event in json.loads(data):
        given = event.get("args", {})
        if event.get("cat") != "Node" or "op_name" not in given or not given.get("provider"):
            continue
        inputs, outputs = given.get("input_type_shape"), given.get("output_type_shape")
        found.append(
            Kernel(
                name=_plain(str(event["name"]).removesuffix("_kernel_time")),
                op=given["op_name"],
                provider=given["provider"],
                input_type=next(iter(inputs[0])) if inputs else None,
                macs=_macs(given["op_name"], _shapes(inputs), _shapes(outputs)),
            )
        )
    return found


def _plain(name: str) -> str:
    return _RENAMED.sub("", name)


def _shapes(entries: Any) -> list[list[int]]:
    return [next(iter(entry.values())) for entry in entries or []]


def _macs(op: str, inputs: list[list[int]], outputs: list[list[int]]) -> int | None:
    """Multiply-accumulates of one convolution or matrix product, 0 of others; None where unknown."""
    if op not in FLOAT_OPS | INT8_OPS:
        return 0
    if len(inputs) < 2 or not outputs or not outputs[0]:
        return None
    out = math.prod(outputs[0])
    if "Conv" in op:
        # QLinearConv: x, its scale and zero point, then the weights.
        weights = inputs[3] if op.endswith("QLinearConv") and len(inputs) > 3 else inputs[1]
        if len(weights) < 3:
            return None
        if op == "ConvTranspose":
            return math.prod(inputs[0]) * math.prod(weights[1:])
        return out * math.prod(weights[1:])
    first = inputs[0]
    if op in ("Gemm", "FusedGemm", "QGemm"):
        # transA is not in the profile: what of A's two sides is not the output's is summed over.
        other = [d for d in first if d != outputs[0][0]]
        return out * (other[0] if other else first[-1]) if len(first) == 2 else None
    return out * first[-1] if first else None


def example_of(session: Any, shapes: Mapping[str, Sequence[int]]) -> Tensors:
    """Zeros for a session's inputs, in the shapes last run, else with 1 for what is dynamic."""
    return {
        node.name: np.zeros(
            shapes.get(node.name) or [d if isinstance(d, int) and d > 0 else 1 for d in node.shape],
            _DTYPES.get(node.type, np.float32),
        )
        for node in session.get_inputs()
    }


def reference_kernels(model: Path, shapes: Mapping[str, Sequence[int]]) -> list[Kernel]:
    """The model's operations with their work, from one inference on the CPU. Empty where it cannot run
    there."""
    import onnxruntime as ort

    file = profile_file()
    if file is None:
        return []
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    # What a provider is offered is what these optimizations leave.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.add_session_config_entry("session.disable_prepacking", "1")
    settings.enable_profiling = True
    settings.profile_file_prefix = file.prefix
    try:
        session = ort.InferenceSession(str(model), settings, providers=[CPU])
        session.run(None, example_of(session, shapes))
    except Exception:  # the CPU may lack an operator that the accelerator has
        file.close()
        return []
    return file.finish(session)


def placement_of(
    kernels: Sequence[Kernel],
    provider: str,
    device: str,
    reference: Sequence[Kernel],
    precision: str,
) -> Placement:
    """Shares of a session of `provider`, whose kernels ran so. `precision` is that of floats there."""
    kind = device_kind(device)
    ran = [k for k in kernels if k.op not in _COPIES]
    on_cpu = [k for k in ran if k.provider == CPU]
    left = Counter(k.op for k in on_cpu)
    compiled = provider in _COMPILING
    # One kernel of a compiling provider is many operations: count those it was offered.
    total = max(len(ran), len(reference)) if compiled else len(ran)
    shares = shares_of(kind, len(on_cpu) / total) if total else {}
    compute = [k for k in (reference if compiled else ran) if k.op in FLOAT_OPS | INT8_OPS]
    integers = [k for k in ran if k.op in INT8_OPS]
    cpu_compute = sum(k.op in FLOAT_OPS | INT8_OPS for k in on_cpu)
    int8 = len(compute) - cpu_compute if compiled and precision == "int8" else len(integers)
    halves = any(k.input_type == "float16" for k in ran if k.op in FLOAT_OPS)
    if int8:
        label = "int8"
    elif halves:
        label = "fp16"
    else:
        label = "fp32" if precision == "int8" else precision
    return Placement(
        shares,
        label,
        len(compute),
        int8,
        mac_shares=_mac_shares(kind, on_cpu, reference),
        left_on_cpu=dict(left),
    )


def _mac_shares(
    kind: str, on_cpu: Iterable[Kernel], reference: Sequence[Kernel]
) -> dict[str, float]:
    work = {k.name: k.macs for k in reference}
    total = sum(macs or 0 for macs in work.values())
    if total == 0 or None in work.values():
        return {}
    cpu = 0
    for kernel in on_cpu:
        macs = work.get(kernel.name, kernel.macs)
        if macs is None:
            return {}
        cpu += macs
    return shares_of(kind, min(1.0, cpu / total))


def float_precision(provider: str, device: str, options: Mapping[str, Option], variant: str) -> str:
    """What a provider computes floats in, as its documentation says; `variant` is the file's precision.

    https://onnxruntime.ai/docs/execution-providers/
    """
    if variant in ("int8", "fp16"):
        return variant
    off = ("0", "False", "false", "")
    kind = device_kind(device)
    if provider == "TensorrtExecutionProvider":
        return "fp16" if str(options.get("trt_fp16_enable", "0")) not in off else "fp32"
    if provider == "QNNExecutionProvider" and kind == "npu":
        return "fp16" if str(options.get("enable_htp_fp16_precision", "1")) not in off else "fp32"
    if provider == "OpenVINOExecutionProvider":
        asked = str(options.get("precision", "FP16")).upper()
        return "fp16" if asked == "FP16" else "fp32"
    if provider == "CoreMLExecutionProvider":
        return "fp32" if options.get("ModelFormat") == "MLProgram" else "fp16"
    return "fp32"
