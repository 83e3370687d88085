"""Static quantization of ONNX with onnxruntime's own quantizer (QDQ format).

The same file runs in onnxruntime, which fuses QDQ into int8 kernels, and through OpenVINO's importer.
Ranges are computed once per calibration method and kept, so that trying again with some nodes left in
fp32 costs no second calibration.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from edgeserve.bundle import Calibration, Recipe
from edgeserve.errors import DataError
from edgeserve.evaluate import Samples
from edgeserve.quantize.equalize import equalize
from edgeserve.quantize.onnx_tools import as_unsupported, is_large, modern, quantization, silenced
from edgeserve.quantize.tails import Tail, mixed_tails, name_nodes, read_ranges
from edgeserve.runtimes.onnx_texts import decoded
from edgeserve.targets.schema import Quantization
from edgeserve.tensors import Tensors

CalibrationMethod = Literal["minmax", "percentile", "entropy"]

# Bytes of activations that histograms are made of at a time: onnxruntime's calibrator keeps every
# activation of every sample it is given at once (onnxruntime#10503).
_CHUNK_BYTES: Final = 256 << 20
_PERCENTILE: Final = 99.999

Progress = Callable[[int, int], None]


class StaticQuantizer:
    """Static QDQ quantization of one model; `work` keeps the prepared model and the ranges.

    Nodes are called as in `prepared`, the source after shape inference and constant folding. `tails` are
    what `quantize` left in fp32 by itself: where parts of different scale are joined at the end.
    """

    def __init__(
        self,
        model: Path,
        samples: Samples,
        scheme: Quantization,
        work: Path,
        progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._samples = samples
        self._scheme = scheme
        self._work = work
        self._progress = progress or (lambda done, total: None)
        self.tails: tuple[Tail, ...] = ()

    @cached_property
    def prepared(self) -> Path:
        """Raises UnsupportedModel, DependencyMissing without `onnx`."""
        tools = quantization()
        destination = self._work / "prepared.onnx"
        with silenced(), as_unsupported(self._model):
            tools.shape_inference.quant_pre_process(
                str(modern(self._model, self._work)),
                str(destination),
                skip_symbolic_shape=True,
                save_as_external_data=is_large(self._model),
                all_tensors_to_one_file=True,
                external_data_location="prepared.data",
            )
            name_nodes(tools.onnx, destination)
        return destination

    @cached_property
    def equalized(self) -> StaticQuantizer | None:
        """The quantizer of the same function with channels equalized; None where that changes nothing."""
        folder = self._work / "equalized"
        folder.mkdir()
        model = folder / "model.onnx"
        if not equalize(self.prepared, model):
            return None
        return StaticQuantizer(model, self._samples, self._scheme, folder, self._progress)

    def quantize(
        self,
        destination: Path,
        method: CalibrationMethod = "minmax",
        keep: Collection[str] = (),
    ) -> Recipe:
        """Write a quantized model to `destination`; nodes named in `keep`, and in `tails`, stay in fp32.

        Raises UnsupportedModel when onnxruntime's quantizer cannot handle the graph.
        """
        tools = quantization()
        scheme = self._scheme
        ranges = self._ranges(method)
        kept = sorted({*keep, *(name for tail in self._find_tails(ranges) for name in tail.nodes)})
        with silenced(), as_unsupported(self._model):
            tools.quantize_static(
                str(self.prepared),
                str(destination),
                calibration_cache_path=ranges,
                calibrate_method=_method(tools, method),
                use_external_data_format=is_large(self._model),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduce_range,
                activation_type=_types(tools)[scheme.activation_type],
                weight_type=_types(tools)[scheme.weight_type],
                nodes_to_exclude=kept,
                extra_options={"ActivationSymmetric": scheme.symmetric_activations},
            )
        return Recipe(
            method="static int8",
            tool=f"onnxruntime {tools.version}",
            scheme=f"QDQ {_SHORT[scheme.activation_type]}{_SHORT[scheme.weight_type]}",
            per_channel=scheme.per_channel,
            calibration_method=method,
            calibration=calibration_record(self._samples),
            kept_fp32=tuple(kept),
        )

    def _find_tails(self, ranges: Path) -> tuple[Tail, ...]:
        with silenced(), as_unsupported(self._model):
            model = quantization().onnx.load_model(str(self.prepared), load_external_data=False)
            self.tails = mixed_tails(model, read_ranges(ranges))
        return self.tails

    def _ranges(self, method: CalibrationMethod) -> Path:
        """The ranges of all activations as onnxruntime's calibration cache."""
        tools = quantization()
        cache = self._work / f"ranges-{method}.json"
        if cache.exists():
            return cache
        shown = sys.stdout  # progress is not what is to be silenced
        registry = {*tools.registry.QDQRegistry, *tools.registry.QLinearOpsRegistry}
        with silenced(), as_unsupported(self._model):
            calibrator = tools.create_calibrator(
                self.prepared,
                list(registry),
                str(self._work / "augmented.onnx"),
                calibrate_method=_method(tools, method),
                use_external_data_format=is_large(self._model),
                extra_options={
                    "symmetric": self._scheme.symmetric_activations,
                    "percentile": _PERCENTILE,
                },
            )
            samples = iter(self._counted(shown))
            first = next(samples, None)
            if first is None:
                raise DataError("there are no calibration samples")
            size = sum(a.nbytes for a in calibrator.infer_session.run(None, first))
            chunk = len(self._samples) if method == "minmax" else max(1, _CHUNK_BYTES // size)
            calibrator.collect_data(_Reader([first]))
            while batch := list(islice(samples, 1)):
                calibrator.collect_data(_Reader([*batch], islice(samples, chunk - 1)))
            tools.save_tensors_data(calibrator.compute_data(), cache)
        return cache

    def _counted(self, shown: TextIO) -> Iterator[Tensors]:
        total = len(self._samples)
        for done, inputs in enumerate(self._samples, start=1):
            with contextlib.redirect_stdout(shown):
                self._progress(done, total)
            yield decoded(inputs)


def calibration_record(samples: Samples) -> Calibration:
    """What the manifest keeps of the calibration data."""
    return Calibration(samples.source, samples.sha256, len(samples), samples.random)


class _Reader:
    """Hands samples to onnxruntime's calibrator one at a time."""

    def __init__(self, *parts: Iterable[Tensors]) -> None:
        self._samples = (inputs for part in parts for inputs in part)

    def get_next(self) -> Tensors | None:
        return next(self._samples, None)

    def __iter__(self) -> Iterator[Tensors]:
        return self._samples


_SHORT: Final = {"uint8": "U8", "int8": "S8", "uint16": "U16", "int16": "S16"}


def _types(tools: Any) -> dict[str, Any]:
    kinds = tools.QuantType
    return {
        "uint8": kinds.QUInt8,
        "int8": kinds.QInt8,
        "uint16": kinds.QUInt16,
        "int16": kinds.QInt16,
    }


def _method(tools: Any, method: CalibrationMethod) -> Any:
    methods = tools.CalibrationMethod
    return {
        "minmax": methods.MinMax,
        "percentile": methods.Percentile,
        "entropy": methods.Entropy,
    }[method]
