"""Quantization of ONNX that needs no calibration data: dynamic int8, and weights alone in blocks.

For models that multiply matrices; convolutions become slower (ConvInteger) or stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeserve.bundle import Recipe
from edgeserve.errors import DependencyMissing
from edgeserve.quantize.onnx_tools import as_unsupported, is_large, modern, quantization, silenced

_DYNAMIC_OPS: Final = ["MatMul", "Gemm", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"]
BLOCK: Final = 32
# int8 activations inside MatMulNBits: three times as fast as fp32 ones (the operator's
# accuracy_level, onnxruntime's docs/ContribOperators.md).
_INT8_ACTIVATIONS: Final = 4


def quantize_onnx_dynamic(model: Path, destination: Path, work: Path) -> Recipe:
    """Weights in int8 per channel, activations quantized while running.

    Raises UnsupportedModel, DependencyMissing without `onnx`.
    """
    tools = quantization()
    prepared = work / "prepared-dynamic.onnx"
    with silenced(), as_unsupported(model):
        tools.shape_inference.quant_pre_process(
            str(modern(model, work)),
            str(prepared),
            skip_symbolic_shape=True,
            save_as_external_data=is_large(model),
            all_tensors_to_one_file=True,
            external_data_location="prepared-dynamic.data",
        )
        tools.quantize_dynamic(
            str(prepared),
            str(destination),
            op_types_to_quantize=_DYNAMIC_OPS,
            per_channel=True,
            use_external_data_format=is_large(model),
            weight_type=tools.QuantType.QInt8,  # signed: 9.2 ms against 13.6 for MiniLM (docs/quantization.md)
            extra_options={"MatMulConstBOnly": True},
        )
    for file in (prepared, prepared.with_suffix(".data")):
        file.unlink(missing_ok=True)
    return Recipe(
        method="dynamic int8",
        tool=f"onnxruntime {tools.version}",
        scheme="S8 weights",
        per_channel=True,
    )


def quantize_onnx_weights(model: Path, destination: Path, bits: int) -> Recipe:
    """Weights of MatMul, and of Gemm where it is one with a bias, in blocks of 32 values with `bits` (4
    or 8) each; the rest as it is.

    Raises UnsupportedModel, DependencyMissing without `onnx` and `onnx-ir`.
    """
    tools = quantization()
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits
        from onnxruntime.quantization.onnx_model import ONNXModel
    except ImportError as error:
        raise DependencyMissing(
            str(error.name or "onnx-ir"), needed_for="weight-only quantization", extra="convert"
        ) from None
    with silenced(), as_unsupported(model):
        plain = ONNXModel(tools.onnx.load_model(str(model)))
        plain.replace_gemm_with_matmul()  # as quantize_dynamic does
        plain.clean_initializers()
        quantizer = nbits.MatMulNBitsQuantizer(
            plain.model,
            algo_config=nbits.DefaultWeightOnlyQuantConfig(
                block_size=BLOCK,
                is_symmetric=True,
                accuracy_level=_INT8_ACTIVATIONS,
                bits=bits,
                op_types_to_quantize=("MatMul",),
            ),
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(destination), is_large(model))
    return Recipe(
        method=f"weights int{bits}",
        tool=f"onnxruntime {tools.version}",
        scheme=f"S{bits} weights in blocks of {BLOCK}",
    )
