"""Sources that a runtime opens as they are: TFLite files and OpenVINO IRs. There is no ONNX behind them.

The source itself, on its own runtime, is then the reference that variants are compared with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle import Precision, Source, VariantFiles
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.conversion.sources.onnx import joint_sha256
from edgeserve.errors import SourceError, UnsupportedModel
from edgeserve.formats.reading import read_model
from edgeserve.formats.report import ModelReport
from edgeserve.quantize import ModelFacts
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.runtimes.guarded import load_guarded
from edgeserve.targets.schema import ChainEntry, Target
from edgeserve.tensors import DTYPES, Interface, TensorSpec

# Formats that are not converted to ONNX, and the runtime that is their reference.
NATIVE: Final = {"tflite": "litert", "openvino-ir": "openvino"}
_CONVOLUTIONS: Final = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "Convolution",
                        "GroupConvolution", "ConvolutionBackpropData"}  # fmt: skip
_PRODUCTS: Final = {"FULLY_CONNECTED", "BATCH_MATMUL", "MatMul"}
_SOFTMAXES: Final = {"SOFTMAX", "Softmax", "ScaledDotProductAttention"}


def read_native(path: Path, format_name: str) -> SourceModel:
    """Read and check a file; quantized ones keep their precision.

    Raises SourceError, UnsupportedModel (types without a tensor form), DependencyMissing.
    """
    report = read_model(path).report()
    if report.format != format_name:
        raise SourceError(f"{path} is not {format_name}", cause=f"it is {report.format}")
    if not report.inputs:
        raise UnsupportedModel(f"{path} has no inputs", cause="there is nothing to serve")
    files = [path.parent / f.name for f in report.files]  # an IR is a .xml with its .bin
    interface = Interface(
        tuple(_named(s, path) for s in report.inputs),
        tuple(_named(s, path) for s in report.outputs),
    )
    return SourceModel(
        path=path,
        format=format_name,
        proto=None,
        source=Source(format_name, path.name, joint_sha256(files), report.size_bytes),
        interface=interface,
        facts=_facts(report),
        precision=_precision(report),
        state=report.state,
        layers=report.layers,
        scales=report.scales,
    )


def open_native(model: SourceModel, threads: int = 0) -> Session:
    """The source on its own runtime's CPU, computing in f32, with `threads` per call (0: the
    engine's choice). Raises what the runtime's `load` raises."""
    files = VariantFiles("source", model.path, model.format, model.precision, model.interface)
    return load_guarded(runtime(NATIVE[model.format]), files, "cpu", LoadOptions(threads=threads))


def _named(spec: TensorSpec, path: Path) -> TensorSpec:
    """The spec with names for its dynamic dimensions, which these formats do not give."""
    if spec.dtype not in (*DTYPES, "BYTES"):
        raise UnsupportedModel(f"{path}: '{spec.name}' is {spec.dtype}, which cannot be served")
    shape = tuple(
        d if d != "?" else ("batch" if i == 0 else f"{spec.name}_dim{i}")
        for i, d in enumerate(spec.shape)
    )
    return msgspec.structs.replace(spec, shape=shape)


def _facts(report: ModelReport) -> ModelFacts:
    counts = report.operators

    def total(kinds: set[str]) -> int:
        return sum(n for kind, n in counts.items() if kind in kinds)

    attends = total(_SOFTMAXES) > 1
    return ModelFacts(
        convolutions=total(_CONVOLUTIONS),
        matmuls=total(_PRODUCTS),
        products=1 if attends else 0,
        softmaxes=total(_SOFTMAXES),
        parameters=report.parameters,
    )


def _precision(report: ModelReport) -> Precision:
    """That of most weights."""
    sizes: dict[Precision, int] = {}
    kinds: dict[str, Precision] = {
        "FP16": "fp16", "BF16": "bf16", "INT8": "int8", "UINT8": "int8", "INT4": "int4",
        "UINT4": "int4",
    }  # fmt: skip
    for share in report.weights:
        precision = kinds.get(share.dtype, "fp32")
        sizes[precision] = sizes.get(precision, 0) + share.elements
    return max(sizes, key=lambda p: sizes[p], default="fp32")


def with_own_runtime(target: Target, model: SourceModel) -> Target:
    """The target, with the source's own runtime as the last of its chain where that is missing."""
    name = NATIVE.get(model.format)
    chain = tuple(e for e in target.chain if not (e.optional and e.runtime == name))
    if name is None or target.convert_only or any(e.runtime == name for e in chain):
        return target
    precisions: tuple[Precision, ...] = (
        ("int8", "fp32") if model.precision == "fp32" else (model.precision,)
    )
    entry = ChainEntry(runtime=name, device="cpu", precisions=precisions)
    return msgspec.structs.replace(target, chain=(*chain, entry))
