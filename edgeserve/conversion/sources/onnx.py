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
from edgeserve.bundle.manifest import Option
from edgeserve.bundle.files import file_sha256
from edgeserve.conversion.sources.graph import SMALL
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.errors import (
    DependencyMissing,
    SourceError,
    UnsupportedModel,
    UsageError,
)
from edgeserve.formats.layers import onnx_layers, precision_held
from edgeserve.formats.onnx import (
    checkable,
    external_files,
    load_external,
    without_weights,
)
from edgeserve.formats.state import passed_state
from edgeserve.quantize import ModelFacts
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.runtimes.guarded import load_guarded
from edgeserve.tensors import Interface, TensorSpec, dtype_name

MIN_OPSET: Final = 7
# What one protobuf file holds, with room for the graph.
PROTOBUF_BYTES: Final = 1_900_000_000


def read_onnx(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> SourceModel:
    """Read and check an ONNX file; `shapes` fixes the dimensions of inputs by name.

    The interface's `max_batch` is 0 here: whether requests may share a batch is found by its graph
    (`batching.by_graph`). Raises SourceError (missing, not ONNX, truncated, external data absent),
    UnsupportedModel (types without a tensor form), UsageError (`shapes` do not fit).
    """
    onnx = _onnx()
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    if path.is_dir():
        raise SourceError(f"{path} is a folder, not an ONNX file")
    proto = _parse(onnx, path)
    external = external_files(path, onnx.external_data_helper._get_all_tensors(proto))
    if shapes:
        fix_shapes(proto, shapes)
    _check(onnx, proto, path)
    load_external(onnx, proto, path.parent)
    sizes = [path, *external]
    source = Source(
        format="onnx",
        file_name=path.name,
        sha256=joint_sha256(sizes),
        size_bytes=sum(f.stat().st_size for f in sizes),
        opset=_opset(proto),
    )
    interface = _interface(onnx, proto, path)
    layers = onnx_layers(proto)
    return SourceModel(
        path, "onnx", proto, source, interface, ModelFacts.of(proto),
        precision=precision_held(layers),
        passed=tuple(passed_state(proto)),
        layers=layers,
    )  # fmt: skip


def kept_on_disk(model: SourceModel, folder: Path) -> SourceModel:
    """The model, saved below `folder`, with the weights out of memory: they would stay there all the while."""
    if model.proto is None:
        return model
    light = without_weights(_onnx(), model.proto, SMALL)
    folder.mkdir(parents=True)
    file = save_onnx(model.proto, folder / "model.onnx")[0]
    return msgspec.structs.replace(model, proto=light, file=file)


def save_onnx(proto: Any, destination: Path) -> list[Path]:
    """Write a model; tensors go beside it, and out of `proto`, when the whole exceeds protobuf's 2 GB. The
    files' paths."""
    onnx = _onnx()
    if not _exceeds_protobuf(proto):
        onnx.save_model(proto, str(destination))
        return [destination]
    data = destination.with_suffix(".data")
    onnx.save_model(
        proto, str(destination), save_as_external_data=True, location=data.name, size_threshold=1024
    )
    return [destination, data]


def open_reference(
    model: SourceModel, file: Path, threads: int = 0, options: Mapping[str, Option] | None = None
) -> Session:
    """The fp32 source itself on onnxruntime's CPU provider, which computes in f32 and nothing less, with
    so many threads a call (0: the engine's choice).

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


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise DependencyMissing("onnx", needed_for="reading ONNX", extra="convert") from None
    return onnx


def _parse(onnx: Any, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise SourceError(f"{path} cannot be read", cause=str(error)) from None
    except (DecodeError, UnicodeDecodeError) as error:
        # A ModelProto begins with its ir_version: field 1, a varint.
        with path.open("rb") as file:
            truncated = file.read(1) == b"\x08"
        raise SourceError(
            f"{path} is not {'a whole' if truncated else 'an'} ONNX model",
            cause=f"{error} ({path.stat().st_size} bytes)",
            hint="it may be truncated: copy or export it again"
            if truncated
            else "docs/sources.md lists what convert reads",
        ) from None
    if not proto.graph.node:
        raise SourceError(
            f"{path} is not an ONNX model",
            cause="it holds no graph",
            hint="edgeserve convert takes .onnx files",
        )
    return proto


def _check(onnx: Any, proto: Any, path: Path) -> None:
    opset = _opset(proto)
    if opset is not None and opset < MIN_OPSET:
        raise UnsupportedModel(
            f"{path} uses opset {opset}", cause=f"edgeserve reads {MIN_OPSET} and newer",
            hint="export the model again with opset 17 or newer",
        )  # fmt: skip
    proto = checkable(onnx, proto)
    if _exceeds_protobuf(proto):
        return  # the checker takes no larger protobuf; onnxruntime checks the graph when it loads it
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        text = str(error).strip().splitlines()[0]
        if "No Op registered for" in text or "is not registered" in text:
            raise UnsupportedModel(
                f"{path} uses an operator that ONNX does not define",
                cause=_naming_nodes(proto, text),
                hint="export the model with standard operators, or with an older opset",
            ) from None
        raise SourceError(f"{path} is not a valid ONNX model", cause=text) from None


def _exceeds_protobuf(proto: Any) -> bool:
    """Whether the model is too large for one file. protobuf cannot even tell the size of those above 2 GB."""
    from google.protobuf.message import EncodeError

    try:
        return bool(proto.ByteSize() > PROTOBUF_BYTES)
    except EncodeError:
        return True


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


def _opset(proto: Any) -> int | None:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)


def _interface(onnx: Any, proto: Any, path: Path) -> Interface:
    initialized = {t.name for t in proto.graph.initializer}
    inputs = tuple(
        _spec(onnx, value, path) for value in proto.graph.input if value.name not in initialized
    )
    if not inputs:
        raise UnsupportedModel(f"{path} has no inputs", cause="there is nothing to serve")
    return Interface(inputs, tuple(_spec(onnx, value, path) for value in proto.graph.output))


def _spec(onnx: Any, value: Any, path: Path) -> TensorSpec:
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


def fix_shapes(proto: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    inputs = {value.name: value for value in proto.graph.input}
    fixed: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(
                f"--shape names no input of the model: '{name}'",
                hint=f"its inputs are {', '.join(inputs)}",
            )
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape):
            raise UsageError(
                f"--shape for '{name}' has {len(shape)} dimensions, the model has {len(dims)}"
            )
        for dim, size in zip(dims, shape, strict=True):
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise UsageError(
                    f"--shape for '{name}' wants {size} where the model is fixed at {dim.dim_value}"
                )
            if dim.dim_param:
                fixed[dim.dim_param] = size
            dim.dim_value = size
    # The same symbol elsewhere is the same size; sizes inferred before no longer hold.
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]
    del proto.graph.value_info[:]


def joint_sha256(files: list[Path]) -> str:
    """The file's own digest; with external data, the digest of all files' digests in order."""
    digests = [file_sha256(f) for f in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
