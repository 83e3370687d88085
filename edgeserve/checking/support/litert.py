"""What LiteRT runs: its interpreter is asked about `.tflite` files. Of an ONNX model only operators from
outside the standard can be judged before it is converted: onnx2tf lists what it translates nowhere."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

from edgeserve.checking.model import OnnxModel, is_standard
from edgeserve.checking.report import Issue, Verdict, unnamed

_NAME: Final = "litert"
# onnx2tf translates some of onnxruntime's operators.
_PERHAPS: Final = ("com.microsoft",)


def judge_onnx(model: OnnxModel, device: str) -> Verdict:
    """Custom operators are refused by the converter; the rest shows when it runs."""
    custom: dict[str, list[str]] = defaultdict(list)
    for node in model.nodes:
        inlined = node.op in model.functions
        if not is_standard(node.domain) and node.domain not in _PERHAPS and not inlined:
            custom[node.op].append(node.name)
    if custom:
        issues = tuple(
            Issue("unsupported-op", op, tuple(nodes), "no TFLite operator corresponds to it")
            for op, nodes in sorted(custom.items())
        )
        return Verdict(_NAME, device, "unsupported", "operators of custom domains", issues)
    why = "onnx2tf does not list its operators: converting the model shows"
    return Verdict(_NAME, device, "unverified", why)


def judge_tflite(path: Path, device: str, operators: dict[str, int]) -> Verdict:
    """The interpreter's verdict on a whole file (`inspect_model` must have read it before: the
    interpreter may crash on damaged ones)."""
    if device != "cpu":
        return Verdict(_NAME, device, "unverified", "its delegate decides when it is opened")
    try:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        return Verdict(_NAME, device, "unverified", "ai-edge-litert is not installed")
    try:
        Interpreter(model_path=str(path), num_threads=1).allocate_tensors()
    except (ValueError, RuntimeError) as error:
        known = vars(schema.BuiltinOperator)
        issues = tuple(
            Issue(
                "unsupported-op", op, unnamed(op, operators), "a custom operator it does not have"
            )
            for op in operators
            if op not in known
        )
        return Verdict(_NAME, device, "unsupported", " ".join(str(error).split()), issues)
    return Verdict(_NAME, device, "runs", "its interpreter opened it")
