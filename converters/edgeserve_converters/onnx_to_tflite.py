"""ONNX -> TFLite (fp32, static batch) by onnx2tf's FlatBuffer builder, which needs no TensorFlow.

onnx2tf can write files that do not load or compute something else, without a word. So what it wrote is run
once beside the source before it is called converted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeserve_converters._onnx import (
    UnsupportedOps,
    all_nodes,
    exceeds_protobuf,
    fix_shapes,
    graph_inputs,
    pad_with_zeros,
    part_outputs,
)
from edgeserve_converters._verify import run_onnx

# Share of the outputs' RMS that fp32 rounding in another order may change.
_TOLERANCE = 1e-2


class OnnxToTflite:
    name = "onnx-to-tflite"
    source_format = "onnx"
    output_format = "tflite"
    # Declared for Python 3.12 and later, but its FlatBuffer builder runs on 3.11.
    requires: tuple[str, ...] = ("onnx2tf==2.6.9",)
    imports: tuple[str, ...] = ("onnx2tf", "onnx", "onnxruntime", "ai_edge_litert")
    pip_arguments: tuple[str, ...] = ("--ignore-requires-python",)

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Inputs keep ONNX's dimension order. `batch` defaults to 1: TFLite kernels want static shapes."""
        import onnx
        import onnx2tf

        if options.get("precision", "fp32") != "fp32":
            raise ValueError(f"{self.name} makes fp32; int8 is made from its result")
        model = onnx.load_model(str(source))
        if exceeds_protobuf(model):
            raise ValueError("a .tflite file holds no more than 2 GB, and the model has more")
        fix_shapes(model, {**options, "batch": options.get("batch") or 1})
        part_outputs(model)
        pad_with_zeros(model)
        destination = out_dir / "model.tflite"
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "model.onnx"
            onnx.save_model(model, str(prepared))
            # It writes over what it is given, and forgets the domains of operators there.
            given = Path(scratch) / "given.onnx"
            shutil.copyfile(prepared, given)
            onnx2tf.convert(
                input_onnx_file_path=str(given),
                output_folder_path=scratch,
                keep_ncw_or_nchw_or_ncdhw_input_names=[
                    value.name
                    for value in graph_inputs(model)
                    if 3 <= len(value.type.tensor_type.shape.dim) <= 5
                ],
                copy_onnx_input_output_names_to_tflite=True,
                non_verbose=True,
                verbosity="error",
            )
            written = Path(scratch) / "given_float32.tflite"
            if not written.is_file():
                raise RuntimeError("onnx2tf wrote no file")
            bindings = _check(model, prepared, written)
            shutil.copyfile(written, destination)
        (out_dir / "bindings.json").write_text(json.dumps(bindings, indent=2), "utf-8")
        return [destination]


def _check(model: Any, prepared: Path, written: Path) -> dict[str, dict[str, object]]:
    """Run both files on the same inputs; how the TFLite file's tensors are called and laid out.

    Raises UnsupportedOps, or RuntimeError saying what is wrong with the file.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(written), num_threads=1)
    _refuse_custom_ops(model, interpreter)
    interpreter.allocate_tensors()
    feeds = {value.name: _sample(value) for value in graph_inputs(model)}
    wanted = run_onnx(prepared, feeds)
    inputs = {d["name"]: d for d in interpreter.get_input_details()}
    outputs = {d["name"]: d for d in interpreter.get_output_details()}
    for kind, found, names in (("input", inputs, feeds), ("output", outputs, wanted)):
        if set(found) != set(names):
            raise RuntimeError(f"onnx2tf made the {kind}s {sorted(found)} of {sorted(names)}")
    bindings: dict[str, dict[str, object]] = {"inputs": {}, "outputs": {}}
    for name, array in feeds.items():
        order = _permutation(name, array.shape, tuple(inputs[name]["shape"]))
        bindings["inputs"][name] = {"name": name, "permutation": order}
        laid_out = array if order is None else np.transpose(array, order)
        interpreter.set_tensor(inputs[name]["index"], laid_out.astype(inputs[name]["dtype"]))
    interpreter.invoke()
    for name, reference in wanted.items():
        try:
            value = interpreter.get_tensor(outputs[name]["index"])
        except ValueError:
            raise RuntimeError(f"nothing writes output '{name}' in what onnx2tf made") from None
        order = _permutation(name, reference.shape, value.shape)
        bindings["outputs"][name] = {"name": name, "permutation": order}
        expected = reference if order is None else np.transpose(reference, order)
        _compare(name, expected, value)
    return bindings


def _refuse_custom_ops(model: Any, interpreter: Any) -> None:
    """onnx2tf turns what it does not know into custom operators that no runtime has."""
    custom = {
        str(op["op_name"]).removeprefix("ONNX_")
        for op in interpreter._get_ops_details()
        if str(op["op_name"]).startswith("ONNX_")
    }
    if not custom:
        return
    raise UnsupportedOps(
        model, _full_names(model, custom) or custom, "onnx2tf and LiteRT have no such operator"
    )


def _full_names(model: Any, ops: set[str]) -> set[str]:
    """The operator types of the model that are called so, with their domains."""
    wanted = {op.upper() for op in ops}
    return {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in all_nodes(model.graph)
        if node.op_type.upper() in wanted
    }


def _sample(value: Any) -> Any:
    """An input for the comparison: normal numbers, or zeros and ones where they may be indices."""
    import numpy as np
    import onnx

    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    random = np.random.default_rng(0)
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    return random.integers(0, 2, size=shape).astype(dtype)


def _permutation(name: str, shape: tuple[int, ...], file: tuple[int, ...]) -> list[int] | None:
    """How `shape` becomes the file's: None when it is the same, else channels last."""
    if tuple(shape) == tuple(file):
        return None
    last = [0, *range(2, len(shape)), 1]
    if len(shape) > 2 and tuple(shape[axis] for axis in last) == tuple(file):
        return last
    raise RuntimeError(f"onnx2tf gave '{name}' the shape {list(file)} instead of {list(shape)}")


def _compare(name: str, expected: Any, value: Any) -> None:
    import numpy as np

    error = np.sqrt(np.mean(np.square(value.astype(np.float64) - expected.astype(np.float64))))
    scale = np.sqrt(np.mean(np.square(expected.astype(np.float64))))
    if not error <= _TOLERANCE * max(float(scale), 1e-6):
        raise RuntimeError(
            f"what onnx2tf made computes something else: '{name}' is off by {error:.3g} RMS, "
            f"its values are {scale:.3g} RMS"
        )


CONVERTER = OnnxToTflite()
