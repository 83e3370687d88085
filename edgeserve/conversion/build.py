"""Making variants: each is converted and quantized once, from intermediates made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from edgeserve.bundle import Binding, FileEntry, Precision, Recipe, Variant, VariantFiles
from edgeserve.bundle.reading import file_sha256
from edgeserve.conversion.registry import (
    UnsupportedOperators,
    converter_between,
    run_converter,
    shortest_path,
)
from edgeserve.conversion.source import OnnxSource, named_nodes, save_onnx
from edgeserve.errors import UnsupportedModel, UsageError
from edgeserve.evaluate import Samples
from edgeserve.quantize import calibration_record, quantize_onnx_static
from edgeserve.targets import Quantization
from edgeserve.tensors import Interface

# Formats whose files accept one batch size only.
_FIXED_BATCH = {"tflite": 1}
_SHORT = {"openvino-ir": "openvino"}
# Relative RMS error a device may show against the source's golden outputs, where nothing was measured.
_TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": 0.5}

Say = Callable[[str, float | None], None]


def variant_id(format_name: str, precision: Precision) -> str:
    return f"{_SHORT.get(format_name, format_name)}-{precision}"


class Builder:
    """Builds variants below `root/variants/ID`, keeping intermediates in `work`."""

    def __init__(
        self,
        source: OnnxSource,
        interface: Interface,
        scheme: Quantization,
        calibration: Samples | None,
        *,
        root: Path,
        work: Path,
        tool_env: bool,
        say: Say,
    ) -> None:
        self._source = source
        self._interface = interface
        self._scheme = scheme
        self._calibration = calibration
        self._root = root
        self._work = work
        self._tool_env = tool_env
        self._say = say
        self._int8_onnx: tuple[Path, Recipe] | None = None
        self._tflite: Path | None = None

    @cached_property
    def fp32_onnx(self) -> Path:
        """The source as one checked ONNX file (and its external data, if any)."""
        folder = self._work / "fp32"
        folder.mkdir(exist_ok=True)
        return save_onnx(self._source.proto, folder / "model.onnx")[0]

    def build(self, format_name: str, precision: Precision) -> Variant:
        """Make one variant. Raises what its converter or quantizer raises."""
        name = variant_id(format_name, precision)
        out = self._root / "variants" / name
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        self._say(f"making {name}", None)
        try:
            main, recipe = self._make(format_name, precision, out)
        except BaseException:
            shutil.rmtree(out)
            raise
        bindings = _read_bindings(out)
        files = tuple(self._entry(p) for p in sorted(out.rglob("*")) if p.is_file())
        return Variant(
            id=name,
            format=format_name,
            precision=precision,
            main=str(main.relative_to(self._root)),
            files=files,
            golden_tolerance=_TOLERANCE[precision],
            batch=_FIXED_BATCH.get(format_name, 0) if self._interface.max_batch else 0,
            bindings=bindings,
            recipe=recipe,
        )

    def files(self, variant: Variant) -> VariantFiles:
        """The variant as a runtime opens it, before there is a bundle."""
        return VariantFiles(
            variant.id,
            self._root / variant.main,
            variant.format,
            variant.precision,
            self._interface,
            variant.batch,
            variant.bindings,
        )

    def discard(self, variant: Variant) -> None:
        shutil.rmtree(self._root / "variants" / variant.id)

    def _entry(self, path: Path) -> FileEntry:
        return FileEntry(
            path.relative_to(self._root).as_posix(), file_sha256(path), path.stat().st_size
        )

    def _make(self, format_name: str, precision: Precision, out: Path) -> tuple[Path, Recipe]:
        if format_name == "tflite":
            return self._make_tflite(precision, out)
        onnx_file, recipe = self._onnx(precision)
        if format_name == "onnx":
            return _copy_onnx(onnx_file, out), recipe
        return self._convert_onnx(onnx_file, format_name, precision, out), recipe

    def _onnx(self, precision: Precision) -> tuple[Path, Recipe]:
        if precision == "int8":
            if self._int8_onnx is None:
                self._int8_onnx = self._quantize_onnx()
            return self._int8_onnx
        if precision == "fp32":
            return self.fp32_onnx, Recipe("conversion", "edgeserve")
        if precision == "fp16":
            folder = self._fresh("fp16")
            converter = converter_between("onnx", "onnx")
            self._say("making fp16", None)
            files = run_converter(
                converter,
                self.fp32_onnx,
                folder,
                {"precision": "fp16"},
                tool_env=self._tool_env,
                say=self._say,
            )
            return files[0], Recipe("cast to fp16", converter.name)
        raise UsageError(f"ONNX variants in {precision} are not made", hint="use fp16 or int8")

    def _quantize_onnx(self) -> tuple[Path, Recipe]:
        calibration = self._need_calibration()
        folder = self._fresh("int8")
        destination = folder / "model.onnx"

        def progress(done: int, total: int) -> None:
            self._say(f"calibrating on {total} samples", done / total)

        recipe = quantize_onnx_static(
            self.fp32_onnx, destination, calibration, self._scheme, folder, progress
        )
        return destination, recipe

    def _convert_onnx(
        self, onnx_file: Path, format_name: str, precision: Precision, out: Path
    ) -> Path:
        """Walk the converters from ONNX to `format_name`; the last one writes into `out`."""
        path = shortest_path("onnx", format_name)
        current = onnx_file
        for index, converter in enumerate(path):
            folder = out if index == len(path) - 1 else self._fresh(f"step-{index}")
            self._say(f"converting to {converter.output_format}", None)
            try:
                current = run_converter(
                    converter,
                    current,
                    folder,
                    {
                        "precision": "fp16" if precision == "fp16" else "fp32",
                        "batch": _FIXED_BATCH.get(converter.output_format, 0),
                    },
                    tool_env=self._tool_env,
                    say=self._say,
                )[0]
            except UnsupportedOperators as error:
                nodes = "; ".join(named_nodes(self._source.proto, op) for op in error.ops)
                raise UnsupportedModel(f"{converter.name} cannot convert {nodes}") from None
        return current

    def _make_tflite(self, precision: Precision, out: Path) -> tuple[Path, Recipe]:
        if self._tflite is None:
            self._tflite = self._convert_onnx(
                self.fp32_onnx, "tflite", "fp32", self._fresh("tflite")
            )
        if precision == "fp32":
            for file in self._tflite.parent.iterdir():
                shutil.copy2(file, out / file.name)
            return out / self._tflite.name, Recipe("conversion", "onnx2tf")
        if precision != "int8":
            raise UsageError(f"TFLite variants in {precision} are not made", hint="use int8")
        calibration = self._need_calibration()
        arrays = self._work / "calibration.npz"
        if not arrays.exists():
            requests = list(calibration)
            np.savez(
                arrays,
                allow_pickle=False,
                **{n: np.concatenate([r[n] for r in requests]) for n in requests[0]},
            )
        converter = converter_between("tflite", "tflite")
        self._say(f"calibrating on {len(calibration)} samples", None)
        main = run_converter(
            converter,
            self._tflite,
            out,
            {"precision": "int8", "calibration": str(arrays)},
            tool_env=self._tool_env,
            say=self._say,
        )[0]
        return main, Recipe(
            method="static int8",
            tool=converter.name,
            scheme="S8S8",
            per_channel=True,
            calibration_method="moving-average minmax",
            calibration=calibration_record(calibration),
        )

    def _need_calibration(self) -> Samples:
        if self._calibration is None:
            raise UsageError(
                "int8 needs calibration data",
                hint="--calibrate FOLDER|FILE.npz, or --calibrate random to try without real data",
            )
        return self._calibration

    def _fresh(self, name: str) -> Path:
        folder = self._work / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder


def _copy_onnx(onnx_file: Path, out: Path) -> Path:
    for file in onnx_file.parent.iterdir():
        if file.stem == onnx_file.stem and file.is_file():
            shutil.copy2(file, out / file.name)
    return out / onnx_file.name


def _read_bindings(out: Path) -> dict[str, Binding]:
    """The names and layouts a converter reported in `bindings.json`, taken out of the variant."""
    file = out / "bindings.json"
    if not file.exists():
        return {}
    data = json.loads(file.read_bytes())
    file.unlink()
    return msgspec.convert({**data["inputs"], **data["outputs"]}, dict[str, Binding])
