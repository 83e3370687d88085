"""What is to be said of a model itself, whatever the runtime: opset, interface, structure, weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Final

from edgeserve.checking.estimate import int8_operators, quantizable_weights
from edgeserve.checking.model import Node, OnnxModel, is_standard
from edgeserve.checking.report import MAX_NODES, Finding, Issue, Level
from edgeserve.checking.support.onnxruntime import newest_opset
from edgeserve.conversion.sources.onnx import MIN_OPSET
from edgeserve.formats.onnx_weights import PROTOBUF_BYTES
from edgeserve.targets.schema import ChainEntry

_CONTROL: Final = ("If", "Loop", "Scan")
_QUANTIZED: Final = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul",
                     "ConvInteger", "MatMulInteger", "com.microsoft.MatMulNBits")  # fmt: skip
# Shape arithmetic and views: nothing there that int8 would make faster.
_NO_ARITHMETIC: Final = {"Constant", "Shape", "Cast", "Identity", "Gather", "ConstantOfShape",
                         "Range", "Dropout", "Expand", "Slice", "Concat", "If", "Loop",
                         "Scan"}  # fmt: skip
_ATTENTION: Final = {"Softmax", "LayerNormalization", "Attention", "Gelu", "Erf"}


def model_findings(model: OnnxModel, *, int8: bool) -> Iterator[Finding]:
    """Findings that hold for every target; `int8` says that one of them wants it."""
    yield from _opset(model)
    yield from _unknown_operators(model)
    yield from _interface(model)
    yield from _custom_domains(model)
    yield from _structure(model)
    yield from _weights(model)
    if int8:
        yield from _int8(model)


def about_nodes(
    rule: str, level: Level, message: str, op: str, nodes: tuple[str, ...], **more: Any
) -> Finding:
    """A finding about nodes, of which the first few are named."""
    return Finding(
        rule, level, message, op=op, nodes=nodes[:MAX_NODES], node_count=len(nodes), **more
    )


def issue_message(runtime: str, device: str, issue: Issue) -> str:
    """One line for an operator that a runtime does not run."""
    count = f"{len(issue.nodes)} nodes" if len(issue.nodes) > 1 else "1 node"
    return f"{runtime}/{device} cannot run {issue.op} ({count}): {issue.why}"


def dynamic_dims(model: OnnxModel, entry: ChainEntry) -> Finding | None:
    """Dimensions besides the batch that vary, where the entry wants static shapes."""
    if not entry.static_shapes or entry.device == "cpu":
        return None
    loose: list[str] = []
    flags: list[str] = []
    for value in model.inputs:
        dims = _dims(value)
        tail = dims[1:] if model.batched else dims
        names = [d for d in tail if isinstance(d, str)]
        if names:
            loose.append(f"input '{value.name}' is [{','.join(map(str, dims))}]: "
                         f"{', '.join(names)} can vary")  # fmt: skip
            flag = ["1" if i == 0 and model.batched else str(d) if isinstance(d, int) else "N"
                    for i, d in enumerate(dims)]  # fmt: skip
            flags.append(f"--shape {value.name}={','.join(flag)}")
    if not loose:
        return None
    return Finding(
        "dynamic-shape",
        "error",
        f"{entry.label} wants static dimensions; {'; '.join(loose)}",
        runtime=entry.runtime,
        device=entry.device,
        hint=f"fix them, here and in convert: {' '.join(flags)}",
    )


def _opset(model: OnnxModel) -> Iterator[Finding]:
    import onnx

    opset = model.opset
    if opset is None:
        return
    if opset < MIN_OPSET:
        yield Finding(
            "opset-too-old", "error",
            f"opset {opset}: edgeserve converts {MIN_OPSET} and newer",
            hint="export the model again with opset 17 or newer",
        )  # fmt: skip
    newest = {"onnx": onnx.defs.onnx_opset_version(), "onnxruntime": newest_opset()}
    behind = [f"{name} knows up to {n}" for name, n in newest.items() if n and opset > n]
    if behind:
        yield Finding(
            "opset-too-new", "error",
            f"opset {opset} is newer than what is installed: {', '.join(behind)}",
            hint="export the model with an older opset, or upgrade these packages",
        )  # fmt: skip


def _unknown_operators(model: OnnxModel) -> Iterator[Finding]:
    """Operators of ONNX's own domains that its opset does not define. onnx's checker stops at one."""
    import onnx

    unknown: dict[str, list[str]] = defaultdict(list)
    for node in model.nodes:
        if not is_standard(node.domain) or node.op in model.functions:
            continue
        if node.opset is None or node.opset > onnx.defs.onnx_opset_version():
            continue
        if not onnx.defs.has(node.op_type, node.opset, node.domain):
            unknown[node.op].append(node.name)
    for op, nodes in sorted(unknown.items()):
        domain = next(n.domain for n in model.nodes if n.op == op)
        version = next(n.opset for n in model.nodes if n.op == op)
        newer = onnx.defs.has(op.rpartition(".")[2], domain)
        yield about_nodes(
            "unknown-op",
            "error",
            f"{domain or 'ai.onnx'} {version} has no operator {op}",
            op,
            tuple(nodes),
            hint="export the model with a newer opset"
            if newer
            else "export the model with standard operators",
        )


def _interface(model: OnnxModel) -> Iterator[Finding]:
    """What convert refuses of inputs and outputs, and what it makes of a fixed batch."""
    if not model.inputs:
        yield Finding("interface", "error", "the model has no inputs: there is nothing to serve")
    for value in (*model.inputs, *model.proto.graph.output):
        kind = value.type.WhichOneof("value")
        name = f"'{value.name}'"
        if kind != "tensor_type":
            yield Finding(
                "interface",
                "error",
                f"{name} is a {(kind or 'value without a type').removesuffix('_type')}, not a tensor",
                hint="scikit-learn classifiers export plain tensors with options={'zipmap': False}"
                if kind in ("sequence_type", "map_type")
                else "export the model with plain tensors as inputs and outputs",
            )
        elif not value.type.tensor_type.HasField("shape"):
            yield Finding(
                "interface", "error", f"the shape of {name} is unknown",
                hint="export the model with shapes, or run onnx.shape_inference on it",
            )  # fmt: skip
        elif model.values[value.name].dtype == "BFLOAT16":
            yield Finding(
                "interface",
                "error",
                f"{name} is BF16",
                hint="export it with FP32 inputs and outputs",
            )
    fixed = [v for v in model.inputs if _dims(v) and isinstance(_dims(v)[0], int)]
    if fixed and len(fixed) == len(model.inputs):
        yield Finding(
            "fixed-batch", "note",
            f"the first dimension of '{fixed[0].name}' is fixed at {_dims(fixed[0])[0]}: "
            "requests cannot share a batch",
            hint="export the model with a dynamic batch, if several requests come at once",
        )  # fmt: skip


def _custom_domains(model: OnnxModel) -> Iterator[Finding]:
    custom: dict[str, list[Node]] = defaultdict(list)
    for node in model.nodes:
        if not is_standard(node.domain) and node.op not in model.functions:
            custom[node.domain].append(node)
    for domain, nodes in sorted(custom.items()):
        ops = sorted({n.op_type for n in nodes})
        whose = "onnxruntime's own" if domain.startswith("com.microsoft") else "not ONNX's"
        yield about_nodes(
            "custom-domain",
            "warning",
            f"domain {domain} is {whose}: {', '.join(ops)}; few runtimes have such operators",
            ", ".join(f"{domain}.{op}" for op in ops),
            tuple(n.name for n in nodes),
            hint="export the model with standard operators to reach every target",
        )


def _structure(model: OnnxModel) -> Iterator[Finding]:
    for op in _CONTROL:
        if nodes := model.named(op):
            yield about_nodes(
                "control-flow", "warning",
                f"{op} ({len(nodes)}): its inner graphs stay in floating point, and accelerators "
                "often leave it to the CPU", op, nodes,
                hint="export the model without it where its condition is known",
            )  # fmt: skip
    quantized = tuple(n.name for n in model.nodes if n.op in _QUANTIZED)
    if quantized:
        kinds = Counter(n.op for n in model.nodes if n.op in _QUANTIZED)
        yield about_nodes(
            "already-quantized", "warning",
            "the model is quantized already: where that is half of the layers or more, convert takes it as "
            "it is", ", ".join(sorted(kinds)), quantized,
            hint="convert the float model it was made from",
        )  # fmt: skip
    if model.shape_problem and all(is_standard(n.domain) for n in model.nodes):
        yield Finding(
            "shape-inference", "warning",
            f"onnx's shape inference fails: {model.shape_problem}",
            hint="engines may refuse the model, or size buffers wrongly: export it again",
        )  # fmt: skip


def _weights(model: OnnxModel) -> Iterator[Finding]:
    doubles = [w for w in model.weights.values() if w.dtype == "DOUBLE"]
    if doubles:
        size = sum(w.size_bytes for w in doubles)
        yield Finding(
            "float64", "warning",
            f"{len(doubles)} weights are FP64 ({size:,} bytes): twice the size, no accelerator runs "
            "them, quantizers leave them as they are",
            nodes=tuple(w.name for w in doubles[:MAX_NODES]), node_count=len(doubles),
            hint="export the model in float32",
        )  # fmt: skip
    if model.size_bytes > PROTOBUF_BYTES:
        yield Finding(
            "large-model", "note",
            f"{model.size_bytes:,} bytes do not fit into one protobuf file: convert writes weights beside it",
        )  # fmt: skip


def _int8(model: OnnxModel) -> Iterator[Finding]:
    """What static int8 will leave alone, and where it tends to cost accuracy."""
    if any(n.op in _QUANTIZED for n in model.nodes):
        return
    arithmetic = [n for n in model.nodes if n.op not in _NO_ARITHMETIC]
    floating = [n for n in arithmetic if n.op not in int8_operators()]
    if floating:
        kinds = Counter(n.op for n in floating)
        listed = ", ".join(f"{op} ({count})" for op, count in kinds.most_common(MAX_NODES))
        more = f" and {len(kinds) - MAX_NODES} more kinds" if len(kinds) > MAX_NODES else ""
        yield about_nodes(
            "int8-stays-float", "note",
            f"{len(floating)} of {len(arithmetic)} nodes have no int8 rule in onnxruntime's "
            f"quantizer: {listed}{more}",
            ", ".join(kinds), tuple(n.name for n in floating),
        )  # fmt: skip
    total = sum(w.size_bytes for w in model.weights.values() if w.dtype in ("FLOAT", "FLOAT16"))
    small = quantizable_weights(model)
    taken = sum(w.size_bytes for w in model.weights.values() if w.name in small)
    products = sum(n.op in ("MatMul", "Gemm") for n in model.nodes)
    convolutions = sum(n.op in ("Conv", "ConvTranspose") for n in model.nodes)
    if total and products > convolutions and any(n.op in _ATTENTION for n in model.nodes):
        yield Finding(
            "int8-static-risk", "note",
            f"{products} matrix products and {convolutions} convolutions: probably a transformer, "
            "where static int8 costs more accuracy than dynamic or weight-only quantization",
            hint="measure it with --eval; keep fp32 or fp16 in the chain",
        )  # fmt: skip
    elif total and taken < total / 2:
        yield Finding(
            "int8-stays-float", "note",
            f"only {100 * taken / total:.0f} % of the float weights' bytes can become int8",
        )  # fmt: skip


def _dims(value: Any) -> list[int | str]:
    return [
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or "?"
        for d in value.type.tensor_type.shape.dim
    ]
