"""Reading an ONNX source: is it a model, is it whole, what goes in and out of it.

Errors are found here, before anything is converted, with the file, node or input they are about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.bundle import Source, VariantFiles
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import Option
from edgeserve.conversion.sources.graph import SMALL
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.errors import SourceError, UnsupportedModel
from edgeserve.formats.layers import precision_held
from edgeserve.formats.onnx import OnnxFile, checker_problem, fix_shapes, is_unknown_operator
from edgeserve.formats.onnx_weights import load_external, save_onnx, without_weights
from edgeserve.quantize import ModelFacts
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.runtimes.guarded import load_guarded
from edgeserve.tensors import Interface, TensorSpec, dtype_name

MIN_OPSET: Final = 7


def read_onnx(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> SourceModel:
    """Read and check an ONNX file; `shapes` fixes the dimensions of inputs by name.

    The interface's `max_batch` is 0 here: whether requests may share a batch is found by its graph
    (`batching.by_graph`). Raises SourceError (missing, not ONNX, truncated, external data absent),
    UnsupportedModel (types without a tensor form), UsageError (`shapes` do not fit).
    """
    file = OnnxFile(path)
    if shapes:
        fix_shapes(file.proto, shapes)
    _check(file)
    load_external(file.proto, path.parent)
    source = Source(
        format="onnx",
        file_name=path.name,
        sha256=joint_sha256(file.files),
        size_bytes=sum(f.stat().st_size for f in file.files),
        opset=file.opsets.get(""),
    )
    return SourceModel(
        path, "onnx", file.proto, source, _interface(file), ModelFacts.of(file.proto),
        precision=precision_held(file.layers),
        passed=file.passed,
        layers=file.layers,
    )  # fmt: skip


def kept_on_disk(model: SourceModel, folder: Path) -> SourceModel:
    """The model, saved below `folder`, with the weights out of memory: they would stay there all the while."""
    if model.proto is None:
        return model
    light = without_weights(model.proto, SMALL)
    folder.mkdir(parents=True)
    file = save_onnx(model.proto, folder / "model.onnx")[0]
    return msgspec.structs.replace(model, proto=light, file=file)


def open_reference(
    model: SourceModel, file: Path, threads: int = 0, options: Mapping[str, Option] | None = None
) -> Session:
    """The fp32 source itself on onnxruntime's CPU provider, which computes in f32 and nothing less, with
    `threads` per call (0: the engine's choice).

    Raises UnsupportedModel naming the node when onnxruntime lacks one of its operators.
    """
    files = VariantFiles("source", file, "onnx", "fp32", model.interface)
    try:
        chosen = LoadOptions(threads=threads, options=dict(options or {}))
        return load_guarded(runtime("onnxruntime"), files, "cpu", chosen)
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"onnxruntime cannot run {model.path.name}",
            cause=_naming_nodes(model.proto, error.cause or error.message).replace(
                str(file), model.path.name
            ),
            hint="every variant is proven against the source in onnxruntime: export the model with "
            "standard operators, or with another opset",
        ) from None


def _naming_nodes(proto: Any, text: str) -> str:
    """Add to an engine's message the names of the nodes whose operator it complains about."""
    named = re.search(r"No Op registered for (\w+)|([\w.]+):(\w+)\(-?\d+\)", text)
    op = next((g for g in (named.groups()[::-1] if named else ()) if g), None)
    return f"{named_nodes(proto, op)}: {text}" if op else text


def named_nodes(proto: Any, op: str) -> str:
    """An operator type (`Op` or `domain.Op`) with the nodes of the graph that use it."""
    kind = op.rpartition(".")[2]
    nodes = [n.name or f"output {n.output[0]}" for n in proto.graph.node if n.op_type == kind]
    if not nodes:
        return f"operator {op}"
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f"operator {op} (node '{nodes[0]}'{more})"


def _check(file: OnnxFile) -> None:
    path, opset = file.path, file.opsets.get("")
    if opset is not None and opset < MIN_OPSET:
        raise UnsupportedModel(
            f"{path} uses opset {opset}", cause=f"edgeserve reads {MIN_OPSET} and newer",
            hint="export the model again with opset 17 or newer",
        )  # fmt: skip
    problem = checker_problem(file.proto)
    if problem is None:
        return
    if is_unknown_operator(problem):
        raise UnsupportedModel(
            f"{path} uses an operator that ONNX does not define",
            cause=_naming_nodes(file.proto, problem),
            hint="export the model with standard operators, or with an older opset",
        )
    raise SourceError(f"{path} is not a valid ONNX model", cause=problem)


def _interface(file: OnnxFile) -> Interface:
    inputs = tuple(_spec(value, file.path) for value in file.inputs())
    if not inputs:
        raise UnsupportedModel(f"{file.path} has no inputs", cause="there is nothing to serve")
    return Interface(inputs, tuple(_spec(v, file.path) for v in file.proto.graph.output))


def _spec(value: Any, path: Path) -> TensorSpec:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        hint = (
            "scikit-learn classifiers export plain tensors with options={'zipmap': False}"
            if kind in ("sequence_type", "map_type")
            else None
        )
        raise UnsupportedModel(
            f"{path}: '{value.name}' is a {kind or 'value without a type'}, not a tensor", hint=hint
        )
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise UnsupportedModel(
            f"{path}: the shape of '{value.name}' is unknown",
            hint="export the model with shapes, or run onnx.shape_inference on it",
        )
    dims: list[int | str] = []
    for index, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param or f"{value.name}_dim{index}")
    if tensor.elem_type == onnx.TensorProto.STRING:
        dtype = "BYTES"
    elif tensor.elem_type == onnx.TensorProto.BFLOAT16:
        raise UnsupportedModel(
            f"{path}: '{value.name}' is BF16", hint="export it with FP32 borders"
        )
    else:
        dtype = dtype_name(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorSpec(value.name, dtype, tuple(dims))


def joint_sha256(files: list[Path]) -> str:
    """The file's own digest; with external data, the digest of all files' digests in order."""
    digests = [file_sha256(f) for f in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
