"""PyTorch -> ONNX (opset 20) by torch's dynamo exporter: ExportedPrograms (`.pt2`), and state_dicts
(`.pt`, `.pth`) with the class that they belong to.

What was written is run beside the program on several inputs before it is called converted. Files that only
unpickling could open are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeserve_converters._pt2 import load_program
from edgeserve_converters._torch_checkpoint import (
    example_inputs,
    load_weights,
    made_model,
    state_dict,
    traced,
)
from edgeserve_converters._verify import (
    SAMPLES,
    is_float,
    open_onnx,
    run_onnx,
    sample_array,
    write_verification,
)

# 18 takes LayerNorm apart.
_OPSET = 20
_REQUIRES = (
    "torch==2.13.0",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
    "onnxruntime==1.32.0",
    "numpy==2.4.6",
)
_IMPORTS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


class TorchExportToOnnx:
    name = "torch-export-to-onnx"
    source_format = "torch-export"
    output_format = "onnx"
    environment = "pytorch"
    requires: tuple[str, ...] = _REQUIRES
    imports: tuple[str, ...] = _IMPORTS
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Dynamic dimensions of the program stay dynamic; the batch is called "batch"."""
        return _write(load_program(source), out_dir)


class TorchCheckpointToOnnx:
    name = "torch-checkpoint-to-onnx"
    source_format = "torch-checkpoint"
    output_format = "onnx"
    environment = "pytorch"
    requires: tuple[str, ...] = _REQUIRES
    imports: tuple[str, ...] = _IMPORTS
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """More options: `model_class` ("module:Class"), `model_args` (its keyword arguments),
        `python_path` (folders to import it from), `input_types` (input name -> dtype, float32 unless
        told), `dynamic_batch` (True). `input_shapes` is needed: the names are those of `forward`."""
        weights = state_dict(source)
        model = made_model(options)
        load_weights(model, weights, str(options.get("model_class")))
        model.eval()
        inputs = example_inputs(model, options)
        return _write(
            traced(model, inputs, dynamic=options.get("dynamic_batch") is not False), out_dir
        )


def _write(program: Any, out_dir: Path) -> list[Path]:
    """ONNX file, external data if there are any, and `verification.json`."""
    import torch

    onnx_program = _exported(program)
    graph = onnx_program.model.graph
    tensors = _tensor_inputs(program)
    if len(graph.inputs) != len(tensors):
        raise RuntimeError(f"torch exported {len(graph.inputs)} of the inputs {list(tensors)}")
    for value, name in zip(graph.inputs, tensors, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, _output_names(program, set(tensors)), strict=True):
        value.name = name
    _name_dimensions(onnx_program.model)
    destination = out_dir / "model.onnx"
    onnx_program.save(str(destination))
    session = open_onnx(destination)
    names = [value.name for value in graph.outputs]
    pairs = []
    for feeds, outputs in _samples(program, tensors):
        expected = dict(zip(names, outputs, strict=True))
        pairs.append((expected, run_onnx(session, feeds)))
    write_verification(out_dir, "torch", str(torch.__version__), pairs)
    return [destination, *sorted(p for p in out_dir.iterdir() if p.name == "model.onnx.data")]


def _exported(program: Any) -> Any:
    """The exporter's result; its own error names the step, and only the innermost one the reason."""
    import torch

    try:
        return torch.onnx.export(
            program, dynamo=True, opset_version=_OPSET, optimize=True, verbose=False
        )
    except Exception as error:
        reasons, at = [], error  # type: tuple[list[str], BaseException | None]
        while at is not None:
            reasons.append(f"{type(at).__name__}: {at}")
            at = at.__cause__
        op = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", reasons[-1])
        failure = RuntimeError(f"torch cannot write it as ONNX: {reasons[-1]}")
        if op:
            failure.unsupported_ops = [op[1]]  # type: ignore[attr-defined] # for check
        raise failure from error


# names


def _tensor_inputs(program: Any) -> dict[str, Any]:
    """The program's tensor inputs by name, as fake tensors: shape (symbols in it) and dtype."""
    wanted = set(program.graph_signature.user_inputs)
    found = {
        node.name: node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder"
        and node.name in wanted
        and hasattr(node.meta.get("val"), "shape")
    }
    if not found:
        raise RuntimeError("the program takes no tensor, so there is nothing to serve")
    for name, value in found.items():
        if "bfloat16" in str(value.dtype):
            raise RuntimeError(f"input '{name}' is bfloat16: export the model with float32 inputs")
    return found


def _output_names(program: Any, taken: set[str]) -> list[str]:
    """Names after what the model returns: a dictionary's keys, else `output`, `output_1`, …"""
    from torch.utils import _pytree

    spec = program.call_spec.out_spec
    leaves = list(range(spec.num_leaves))
    paths, _ = _pytree.tree_flatten_with_path(_pytree.tree_unflatten(leaves, spec))
    names: list[str] = []
    for path, index in paths:
        parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        name = re.sub(r"\W+", "_", "_".join(parts)).strip("_")
        if not name or name.isdigit() or name[0].isdigit():
            name = "output" if spec.num_leaves == 1 else f"output_{name or index}"
        while name in taken:
            name += "_out"
        taken.add(name)
        names.append(name)
    return names


def _name_dimensions(model: Any) -> None:
    """Give torch's symbols (s40) names a reader understands, wherever shapes are noted."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for index, dim in enumerate(value.shape or ()):
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            if symbol is None or symbol in names or not symbol.isidentifier():
                continue
            name = f"{value.name}_dim{index}"
            if index == 0:
                name = "batch" if "batch" not in names.values() else f"{value.name}_batch"
            elif index == 1 and len(value.shape) == 2 and "sequence" not in names.values():
                name = "sequence"
            names[symbol] = name
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            _rename(value, names)
    for value in (*model.graph.inputs, *model.graph.outputs):
        _rename(value, names)


def _rename(value: Any, names: Mapping[str, str]) -> None:
    import onnx_ir as ir

    if value.shape is None:
        return
    dims = [
        ir.SymbolicDim(re.sub(r"[^\W\d]\w*", lambda word: names.get(word[0], word[0]), dim.value))
        if isinstance(dim, ir.SymbolicDim) and dim.value
        else dim
        for dim in value.shape
    ]
    value.shape = ir.Shape(dims)


# verification


def _samples(program: Any, tensors: Mapping[str, Any]) -> list[tuple[dict[str, Any], list[Any]]]:
    """(feeds, the program's outputs) of several inputs, of several batch sizes where these are dynamic."""
    import numpy as np
    import torch
    from torch.utils import _pytree

    examples = _examples(program)
    run = program.module()
    rng = np.random.default_rng(0)
    found: list[tuple[dict[str, Any], list[Any]]] = []
    # The example's own sizes come last: they always fit. Others may break what the program assumes.
    for sizes in ({}, {0: 3}, {0: 1}, {0: 2, 1: 5}, *({} for _ in range(SAMPLES))):
        if len(found) == SAMPLES:
            break
        feeds = {
            name: _like(
                examples.get(name), _shape(program, value, sizes, examples.get(name)), value, rng
            )
            for name, value in tensors.items()
        }
        flat = [
            torch.from_numpy(feeds[spec.arg.name]) if spec.arg.name in feeds else spec.arg.value
            for spec in program.graph_signature.input_specs
            if spec.kind.name == "USER_INPUT"
        ]
        args, kwargs = _pytree.tree_unflatten(flat, program.call_spec.in_spec)
        try:
            with torch.no_grad():
                outputs = _pytree.tree_leaves(run(*args, **kwargs))
        except Exception:
            if not sizes:
                raise
            continue  # the model takes other sizes
        found.append((feeds, [o.detach().cpu().numpy() for o in outputs]))
    return found


def _examples(program: Any) -> dict[str, Any]:
    """The inputs the program was exported with, kept in the file unless that was turned off."""
    from torch.utils import _pytree

    if program.example_inputs is None:
        return {}
    specs = [s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    leaves = _pytree.tree_leaves(program.example_inputs)
    if len(leaves) != len(specs):
        return {}
    return {
        spec.arg.name: leaf.detach().cpu().numpy()
        for spec, leaf in zip(specs, leaves, strict=True)
        if hasattr(leaf, "detach")
    }


def _shape(program: Any, value: Any, sizes: Mapping[int, int], example: Any) -> list[int]:
    """A shape for an input: batch sizes (`sizes[0]`) and other dynamic ones (`sizes[1]`) as asked for,
    where the program's ranges allow; else the example's."""
    import torch

    shape = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        assert isinstance(dim, torch.SymInt)
        usual = int(example.shape[axis]) if example is not None else dim.node.hint or 2
        asked = sizes.get(0 if axis == 0 else 1)
        expression = dim.node.expr
        bounds = program.range_constraints.get(expression)
        if asked is None or not expression.is_Symbol or bounds is None:
            shape.append(usual)
        else:
            wanted = usual + asked if axis else asked
            shape.append(wanted if bounds.lower <= wanted <= bounds.upper else usual)
    return shape


def _like(example: Any, shape: Sequence[int], value: Any, rng: Any) -> Any:
    """Values as the example has them, in any shape; made up where its values are all the same."""
    import numpy as np
    import torch

    dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
    if example is None or example.size < 2 or np.all(example == example.flat[0]):
        return sample_array(shape, dtype, rng)
    if is_float(dtype) and not np.isfinite(example).all():
        return sample_array(shape, dtype, rng)
    return rng.choice(example.reshape(-1), size=tuple(shape)).astype(dtype)


EXPORTED = TorchExportToOnnx()
CHECKPOINT = TorchCheckpointToOnnx()
