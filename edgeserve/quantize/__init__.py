"""Quantization recipes: each turns an fp32 model into a smaller one with another tool's algorithm."""

from edgeserve.quantize.onnx_static import calibration_record, quantize_onnx_static

__all__ = ["calibration_record", "quantize_onnx_static"]
