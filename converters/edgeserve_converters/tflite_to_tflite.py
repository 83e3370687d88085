"""TFLite fp32 -> quantized TFLite, by Google's ai-edge-quantizer: static, dynamic, or weights alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from edgeserve_converters._calibration import Requests

# (method, precision of the weights) -> the quantizer's recipe
_RECIPES = {
    ("static", "int8"): "static_wi8_ai8",
    ("static-16x8", "int8"): "static_wi8_ai16",
    ("dynamic", "int8"): "dynamic_wi8_afp32",
    ("dynamic", "int4"): "dynamic_wi4_afp32",
    ("weights", "int8"): "weight_only_wi8_afp32",
    ("weights", "int4"): "weight_only_wi4_afp32",
}


# So many requests are in memory while it calibrates.
_AT_ONCE = 128


class TfliteToTflite:
    name = "tflite-to-tflite"
    source_format = "tflite"
    output_format = "tflite"
    requires: tuple[str, ...] = ("ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0")
    imports: tuple[str, ...] = ("ai_edge_quantizer",)
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Options: `method` (static, static-16x8, dynamic, weights), `precision` (int8, int4), and
        `calibration` for the static ones: requests in the source model's layout; `per_tensor`: operators
        (`*` for all) whose weights get one scale, not one a channel.

        A `bindings.json` beside the source says how those become the file's inputs; it holds for the
        result, too, and is copied.
        """
        from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

        method, precision = str(options.get("method", "static")), str(options.get("precision"))
        name = _RECIPES.get((method, precision))
        if name is None:
            raise ValueError(f"{self.name} does not make {precision} by {method}")
        beside = source.parent / "bindings.json"
        bindings = json.loads(beside.read_text("utf-8")) if beside.exists() else {"inputs": {}}
        with _silenced(), tempfile.TemporaryDirectory() as scratch:
            file, signature = _with_signature(_widened(source, Path(scratch)), Path(scratch))
            tool = quantizer.Quantizer(str(file), getattr(recipe, name)())
            per_tensor = options.get("per_tensor") or []
            assert isinstance(per_tensor, list)
            for operation in per_tensor:
                tool.update_quantization_recipe(
                    ".*", qtyping.TFLOperationName(operation), _per_tensor(qtyping, method)
                )
            if method.startswith("static"):
                for operation, output in _left_in_float(file):
                    tool.update_quantization_recipe(
                        f"(^|;){re.escape(output)}(;|$)",
                        qtyping.TFLOperationName(operation),
                        algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE,
                    )
            measured = None
            if tool.need_calibration:
                if not options.get("calibration"):
                    raise ValueError(f"{name} needs calibration data")
                data = Path(str(options["calibration"]))
                samples = _samples(data, bindings["inputs"], _called(file, signature))
                # The quantizer makes a list of what it is given, and goes on where it was.
                while part := list(islice(samples, _AT_ONCE)):
                    measured = tool.calibrate(
                        {signature: part}, measured, num_threads=os.cpu_count() or 1
                    )
            result = tool.quantize(measured, enable_progress_report=False)
        destination = out_dir / "model.tflite"
        result.export_model(str(destination), overwrite=True)
        destination.chmod(0o644)  # the quantizer makes it executable
        if beside.exists():
            (out_dir / "bindings.json").write_text(json.dumps(bindings, indent=2), "utf-8")
        return [destination]


def _widened(source: Path, scratch: Path) -> Path:
    """The file, or a copy of it whose constants in FP16 are FP32: as TensorFlow stores them, each with a
    DEQUANTIZE behind it, which the quantizer takes for an activation."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(source.read_bytes(), 0))
    dequantize = {
        i
        for i, c in enumerate(model.operatorCodes)
        if max(c.builtinCode, c.deprecatedBuiltinCode) == schema.BuiltinOperator.DEQUANTIZE
    }
    read: set[int] = set()
    for graph in model.subgraphs:
        kept = []
        for op in graph.operators or ():
            half = graph.tensors[op.inputs[0]] if op.opcodeIndex in dequantize else None
            data = None if half is None else model.buffers[half.buffer].data
            if half is None or data is None or half.type != schema.TensorType.FLOAT16:
                kept.append(op)
                continue
            buffer = schema.BufferT()
            wide = np.frombuffer(bytes(data), np.float16).astype(np.float32)
            buffer.data = np.frombuffer(wide.tobytes(), np.uint8)
            model.buffers.append(buffer)
            graph.tensors[op.outputs[0]].buffer = len(model.buffers) - 1
            read.add(half.buffer)
        graph.operators = kept
    if not read:
        return source
    for index in read:
        model.buffers[index].data = None
    builder = flatbuffers.Builder(2 * source.stat().st_size)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    copy = scratch / "wide.tflite"
    copy.write_bytes(bytes(builder.Output()))
    return copy


def _with_signature(source: Path, scratch: Path) -> tuple[Path, str]:
    """The file, or a copy of it with a signature, and that signature's name.

    Older files have none; calibration addresses tensors by it. Its names are the tensors' own.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    names = list(Interpreter(str(source)).get_signature_list())
    if len(names) > 1:
        raise ValueError(f"{source.name} has {len(names)} signatures, calibration needs one")
    if names:
        return source, str(names[0])
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(source.read_bytes(), 0))
    graph = model.subgraphs[0]

    def maps(indices: Any) -> list[Any]:
        tensors = []
        for index in indices:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = graph.tensors[index].name, int(index)
            tensors.append(entry)
        return tensors

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs, signature.outputs = maps(graph.inputs), maps(graph.outputs)
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(source.stat().st_size)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    copy = scratch / "signed.tflite"
    copy.write_bytes(bytes(builder.Output()))
    return copy, "serving_default"


def _called(file: Path, signature: str) -> dict[str, str]:
    """What the signature calls the inputs, by their tensors' names: TensorFlow's differ."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(file)).get_signature_runner(signature)
    return {str(tensor["name"]): name for name, tensor in runner.get_input_details().items()}


def _per_tensor(qtyping: Any, method: str) -> Any:
    """How operators are quantized with one scale for all of their weights (int8)."""
    activations = None
    if method.startswith("static"):
        wide = method == "static-16x8"
        activations = qtyping.TensorQuantizationConfig(
            num_bits=16 if wide else 8,
            symmetric=wide,
            granularity=qtyping.QuantGranularity.TENSORWISE,
        )
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=activations,
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.TENSORWISE
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT
        if method == "weights"
        else qtyping.ComputePrecision.INTEGER,
        explicit_dequantize=method == "weights",
    )


def _left_in_float(file: Path) -> list[tuple[str, str]]:
    """Operators that static recipes must leave alone, each with its output's name.

    PADV2 pads with a value: for a maximum that is the lowest float, whose range would be that of the
    whole tensor, and ai-edge-quantizer 0.10 fails on the value itself ("Ranks of scales").
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    names = {d["index"]: str(d["name"]) for d in interpreter.get_tensor_details()}
    ops = interpreter._get_ops_details()
    padded = {int(i) for op in ops if op["op_name"] == "PADV2" for i in op["outputs"]}
    return [
        (str(op["op_name"]), names[int(op["outputs"][0])])
        for op in ops
        if op["op_name"] == "PADV2" or padded & {int(i) for i in op["inputs"]}
    ]


def _samples(
    calibration: Path, inputs: Mapping[str, Any], called: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The requests, named and laid out as the file takes them."""
    import numpy as np

    for request in Requests(calibration):
        laid_out = {}
        for name, array in request.items():
            binding = inputs.get(name) or {"name": name, "permutation": None}
            order = binding["permutation"]
            tensor = binding["name"]
            laid_out[called.get(tensor, tensor)] = np.asarray(
                array if order is None else array.transpose(order), order="C"
            )
        yield laid_out


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """The quantizer prints progress bars, warns of memory, and LiteRT greets on the descriptor itself."""
    with Path(os.devnull).open("w") as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            with (
                contextlib.redirect_stderr(sink),
                contextlib.redirect_stdout(sink),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


CONVERTER = TfliteToTflite()
