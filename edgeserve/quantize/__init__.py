"""Quantization recipes: each turns an fp32 model into a smaller one with another tool's algorithm."""

from edgeserve.quantize.facts import ModelFacts
from edgeserve.quantize.onnx_static import CalibrationMethod, StaticQuantizer, calibration_record
from edgeserve.quantize.onnx_weights import quantize_onnx_dynamic, quantize_onnx_weights
from edgeserve.quantize.reach import beyond_fp16
from edgeserve.quantize.recipes import RECIPES, VariantPlan, check_names, plans_for
from edgeserve.quantize.sensitivity import LayerError, head_layers, rank_layers
from edgeserve.quantize.tails import Tail

__all__ = [
    "RECIPES",
    "CalibrationMethod",
    "LayerError",
    "ModelFacts",
    "StaticQuantizer",
    "Tail",
    "VariantPlan",
    "beyond_fp16",
    "calibration_record",
    "check_names",
    "head_layers",
    "plans_for",
    "quantize_onnx_dynamic",
    "quantize_onnx_weights",
    "rank_layers",
]
