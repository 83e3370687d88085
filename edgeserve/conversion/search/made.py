"""What a recipe made: whether the file holds what was asked for, and in how many layers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeserve.errors import DependencyMissing, UnsupportedModel
from edgeserve.formats.layers import Layers, quantized_in
from edgeserve.formats.reading import ModelReader, read_model
from edgeserve.quantize import VariantPlan

# Formats that `read_model` reads.
_READ: Final = ("onnx", "openvino-ir", "tflite")
# What a recipe can quantize or cast.
_TAKES: Final = {
    "weights": "MatMul, or of Gemm, with constant weights",
    "dynamic": "products or lookups with constant weights",
    "cast": "constants in FP32",
}


def read_made(main: Path, format_name: str) -> ModelReader | None:
    """The file that a recipe made, parsed; None where nothing here reads its format."""
    if format_name not in _READ:
        return None
    try:
        return read_model(main)
    except DependencyMissing:  # made in a tool environment, and its reader is not installed here
        return None


def made_layers(made: ModelReader | None, plan: VariantPlan) -> Layers:
    """The layers of a file by the precision of their weights; empty where nothing can read the format.

    Raises UnsupportedModel where the recipe of `plan` left every layer as it was: the file is the
    source's under another name.
    """
    if made is None or plan.precision not in ("fp16", "int8", "int4"):
        return {}
    layers = made.layers
    if plan.recipe == "plain":
        return layers  # named by what it holds: `precision_held`
    changed = layers.get("fp16", 0) if plan.precision == "fp16" else quantized_in(layers)
    if changed or (not layers and plan.precision == "fp16"):
        return layers
    what = "cast" if plan.precision == "fp16" else "quantized"
    total = sum(layers.values())
    raise UnsupportedModel(
        f"nothing was {what}: of the {total} layers in the file, none is in {plan.precision}",
        cause=f"the recipe {plan.recipe} finds no "
        + _TAKES.get(plan.recipe, "layers that its tool quantizes"),
    )
