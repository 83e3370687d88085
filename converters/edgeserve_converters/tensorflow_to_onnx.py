"""Keras files and TensorFlow SavedModels -> ONNX (opset 18) by tf2onnx. Images stay NHWC, as TensorFlow has
them; the ONNX file transposes inside.

What was written is run beside TensorFlow on several inputs before it is called converted. Python code in a
file (Lambda layers) is not run; graphs that would read or write files, or call Python, are refused.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeserve_converters._onnx import UnsupportedOps, all_nodes
from edgeserve_converters._verify import (
    open_onnx,
    run_onnx,
    sample_array,
    write_verification,
)

# The highest that tf2onnx 1.17 writes.
_OPSET = 18
_REQUIRES = (
    # Only on x86-64 is there a smaller build without CUDA; elsewhere the usual one has none.
    "tensorflow-cpu==2.21.0; platform_machine == 'x86_64'",
    "tensorflow==2.21.0; platform_machine != 'x86_64'",
    "keras==3.15.1",
    "tf2onnx==1.17.0",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "protobuf==7.36.2",
    "h5py==3.14.0",
    "numpy==2.4.6",
)
_IMPORTS = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")
# What a graph must not hold: it is run to be compared.
_FORBIDDEN = {"ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc"}
# Sizes tried for dimensions that the model leaves open: small for texts, large for deep convolutions.
_OPEN_SIZES = (96, 16, 224)
# The batch sizes compared, where the batch is open.
_BATCHES = (1, 3, 2, 1)

# (feeds, TensorFlow's outputs) of each run
_Compared = Sequence[tuple[dict[str, Any], dict[str, Any]]]


class KerasToOnnx:
    name = "keras-to-onnx"
    source_format = "keras"
    output_format = "onnx"
    environment = "tensorflow"
    requires: tuple[str, ...] = _REQUIRES
    imports: tuple[str, ...] = _IMPORTS
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Inputs are called as their Input layers, outputs as the layers that make them or the keys of
        a returned dictionary. `input_shapes` gives sizes to compare with where the model leaves them open."""
        os.environ["KERAS_BACKEND"] = "tensorflow"  # read when keras is imported
        tf = _tensorflow()
        model = _keras_model(source)
        specs, structure = _keras_inputs(tf, model)

        def call(*tensors: Any) -> dict[str, Any]:
            import keras

            packed = keras.tree.pack_sequence_as(structure, list(tensors))
            return _named(keras, model, model(packed, training=False))

        return _write(tf, call, specs, out_dir, options)


class SavedModelToOnnx:
    name = "tf-saved-model-to-onnx"
    source_format = "tf-saved-model"
    output_format = "onnx"
    environment = "tensorflow"
    requires: tuple[str, ...] = _REQUIRES
    imports: tuple[str, ...] = _IMPORTS
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """One more option: `signature` ("serving_default"). Inputs and outputs are called as in the
        signature; `input_shapes` gives sizes to compare with where it leaves them open."""
        tf = _tensorflow()
        name = str(options.get("signature") or "serving_default")
        tags = _checked(source, name)
        # `loaded` keeps the variables alive that the signature uses.
        loaded = _attempt(
            lambda: tf.saved_model.load(str(source), tags=tags), "TensorFlow cannot load it"
        )
        signature = loaded.signatures[name]
        inputs = signature.structured_input_signature[1]
        specs = [tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in inputs.items()]

        def call(*tensors: Any) -> dict[str, Any]:
            return dict(signature(**dict(zip(inputs, tensors, strict=True))))

        return _write(tf, call, specs, out_dir, options)


def _tensorflow() -> Any:
    """TensorFlow, silent and on the CPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    # Not by CUDA_VISIBLE_DEVICES: the converter may share its process with other engines.
    tf.config.set_visible_devices([], "GPU")
    return tf


def _attempt(action: Callable[[], Any], what: str) -> Any:
    """TensorFlow's and Keras's errors, OSErrors and ImportErrors among them, are about the model here."""
    try:
        return action()
    except MemoryError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RuntimeError(f"{what}: {' '.join(lines[:4]) or type(error).__name__}") from error


# Keras


def _keras_model(source: Path) -> Any:
    """The model, without its optimizer. Raises RuntimeError for files that are damaged or hold code."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(f"Keras runs on {keras.backend.backend()} here, not on TensorFlow")
    if source.suffix == ".keras" and not zipfile.is_zipfile(source):
        raise RuntimeError("it is not a complete .keras archive: copy or save it again")

    def load() -> Any:
        return keras.saving.load_model(str(source), compile=False, safe_mode=True)

    try:
        return _attempt(load, f"Keras {keras.__version__} cannot load it")
    except RuntimeError as error:
        text = str(error)
        if "safe_mode" in text:
            raise RuntimeError(
                "it holds a Lambda layer or other Python code, which loading would execute: use Keras's own "
                "layers instead, or write a SavedModel with model.export(folder) where the code is"
            ) from error
        if "No model config" in text or "No model found" in text:
            raise RuntimeError(
                "it holds weights alone: save the whole model with model.save(…)"
            ) from error
        raise


def _keras_inputs(tf: Any, model: Any) -> tuple[list[Any], Any]:
    """TensorSpecs of the flat inputs, and the structure that the model is called with."""
    import keras

    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise RuntimeError(
            "it does not know its inputs: build it with keras.Input, or write a SavedModel with "
            "model.export(folder) where its class is"
        )
    structure = getattr(model, "_inputs_struct", None)
    if structure is None:
        structure = inputs[0] if len(inputs) == 1 else inputs
    flat = keras.tree.flatten(structure)
    return [tf.TensorSpec(t.shape, t.dtype, name=t.name) for t in flat], structure


def _named(keras: Any, model: Any, outputs: Any) -> dict[str, Any]:
    """Outputs by name: a flat dictionary's keys, else the layers' names."""
    if isinstance(outputs, Mapping) and not any(
        isinstance(v, Mapping | list | tuple) for v in outputs.values()
    ):
        return dict(outputs)
    flat = keras.tree.flatten(outputs)
    names = list(getattr(model, "output_names", None) or [model.layers[-1].name])
    if len(set(names)) != len(flat):
        names = [f"output_{index}" for index in range(len(flat))]
    return dict(zip(names, flat, strict=True))


# SavedModel


def _checked(source: Path, signature: str) -> list[str]:
    """The tags to load, after a look at the file itself. Raises RuntimeError for one that is damaged, lacks
    the signature, or whose graph does more than compute."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        model = saved_model_pb2.SavedModel.FromString((source / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise RuntimeError(f"saved_model.pb is damaged: {error}") from None
    if not model.meta_graphs:
        raise RuntimeError("saved_model.pb holds no graph: it is truncated, or not a SavedModel")
    serving = [m for m in model.meta_graphs if "serve" in m.meta_info_def.tags]
    graph = (serving or list(model.meta_graphs))[0]
    names = sorted(n for n in graph.signature_def if not n.startswith("__"))
    if not names:
        raise RuntimeError(
            "it has no signature, so its inputs and outputs are unknown: write it with model.export(folder), "
            "or tf.saved_model.save(module, folder, signatures=…)"
        )
    if signature not in names:
        raise RuntimeError(f"it has no signature '{signature}'; choose one of {', '.join(names)}")
    nodes = [
        *graph.graph_def.node,
        *(n for f in graph.graph_def.library.function for n in f.node_def),
    ]
    bad = sorted({node.op for node in nodes if _reaches_out(node)})
    if bad:
        raise RuntimeError(
            f"its graph reads or writes files, or calls Python ({', '.join(bad)}); it is not run"
        )
    return list(graph.meta_info_def.tags)


def _reaches_out(node: Any) -> bool:
    return node.op in _FORBIDDEN or (
        node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
    )


# conversion


def _write(
    tf: Any,
    call: Callable[..., dict[str, Any]],
    specs: list[Any],
    out_dir: Path,
    options: Mapping[str, object],
) -> list[Path]:
    """Convert a function of flat tensors, and compare. An open first dimension becomes "batch"."""
    import onnx
    import tf2onnx

    for spec in specs:
        if spec.shape.rank is None:
            raise RuntimeError(
                f"input '{spec.name}' has an unknown number of dimensions: fix it in the model"
            )
        if not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool):
            raise RuntimeError(
                f"input '{spec.name}' is of type {spec.dtype.name}; ONNX gets numbers"
            )
    function = tf.function(call, input_signature=specs, autograph=False)
    destination = out_dir / "model.onnx"
    model, _ = _attempt(
        lambda: tf2onnx.convert.from_function(function, specs, opset=_OPSET),
        "tf2onnx cannot convert it",
    )
    _refuse_unknown_ops(model)
    compared = _compared(tf, function, specs, options)
    _name_dimensions(model, compared)
    onnx.save_model(model, str(destination))
    session = open_onnx(destination)
    pairs = [(wanted, run_onnx(session, feeds)) for feeds, wanted in compared]
    write_verification(out_dir, "tensorflow", tf.__version__, pairs)
    return [destination]


def _refuse_unknown_ops(model: Any) -> None:
    """tf2onnx logs what it cannot convert, and leaves the TensorFlow operator in the file."""
    import onnx

    versions = {opset.domain: opset.version for opset in model.opset_import}
    unknown = {
        node.op_type
        for node in all_nodes(model.graph)
        if not onnx.defs.has(node.op_type, versions.get(node.domain, 1), node.domain)
    }
    if unknown:
        raise UnsupportedOps(model, unknown, "tf2onnx has no ONNX form of it")


def _name_dimensions(model: Any, compared: _Compared) -> None:
    """tf2onnx calls each open dimension unk__N. An output's first one is the batch if it followed it."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        sizes = [(feeds | outputs)[value.name].shape[:1] for feeds, outputs in compared]
        is_batch = sizes == [(batch,) for batch in _BATCHES]
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_param = "batch" if is_batch and not index else f"{value.name}_dim{index}"


def _compared(tf: Any, function: Any, specs: list[Any], options: Mapping[str, object]) -> _Compared:
    """Runs of several batch sizes, where the batch is open. Raises RuntimeError when none succeeds."""
    import numpy as np

    shapes = options.get("input_shapes") or {}
    assert isinstance(shapes, Mapping)
    rng = np.random.default_rng(0)

    def tried(batch: int, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        feeds = {}
        for spec in specs:
            asked = shapes.get(spec.name) or [size] * spec.shape.rank
            shape = [
                known or (batch if axis == 0 else int(asked[axis]))
                for axis, known in enumerate(spec.shape.as_list())
            ]
            feeds[spec.name] = sample_array(shape, spec.dtype.as_numpy_dtype, rng)
        outputs = function(*[tf.constant(feeds[spec.name]) for spec in specs])
        return feeds, {name: value.numpy() for name, value in outputs.items()}

    for size in _OPEN_SIZES:
        try:
            tried(2, size)
        except (tf.errors.OpError, ValueError) as error:
            failure = error
            continue
        return [tried(batch, size) for batch in _BATCHES]
    raise RuntimeError(f"TensorFlow cannot run it; give --shape: {str(failure).splitlines()[0]}")


KERAS = KerasToOnnx()
SAVED_MODEL = SavedModelToOnnx()
