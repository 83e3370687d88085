"""What came of a recipe: whether the file that it made holds what was asked for, and in how many layers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeserve.errors import UnsupportedModel
from edgeserve.formats.layers import Layers, layers_of, quantized_in
from edgeserve.quantize import VariantPlan

# What a recipe can take hold of.
_TAKES: Final = {
    "weights": "MatMul, or of Gemm, with constant weights",
    "dynamic": "products or lookups with constant weights",
    "cast": "constants in FP32",
}


def made_layers(main: Path, plan: VariantPlan) -> Layers:
    """The layers of a file by the precision of their weights; empty where nothing can read the format.

    Raises UnsupportedModel where the recipe of `plan` left every layer as it was: the file is the
    source's under another name.
    """
    if plan.precision not in ("fp16", "int8", "int4"):
        return {}
    try:
        layers = layers_of(main, plan.format)
    except ImportError:  # made in a tool environment, and its reader is not installed here
        return {}
    if plan.recipe == "plain":
        return layers  # called by what it holds: `precision_held`
    changed = layers.get("fp16", 0) if plan.precision == "fp16" else quantized_in(layers)
    if changed or (not layers and plan.precision == "fp16"):
        return layers
    if not layers and plan.format not in ("onnx", "openvino-ir", "tflite"):
        return {}  # a format of somebody else's
    what = "cast" if plan.precision == "fp16" else "quantized"
    total = sum(layers.values())
    raise UnsupportedModel(
        f"nothing was {what}: of the {total} layers in the file, none is in {plan.precision}",
        cause=f"the recipe {plan.recipe} finds no "
        + _TAKES.get(plan.recipe, "layers that its tool quantizes"),
    )
