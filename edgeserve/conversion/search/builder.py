"""Making variants: each is converted and quantized once, from intermediates made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from edgeserve.bundle import Binding, FileEntry, Precision, Recipe, Variant, VariantFiles
from edgeserve.bundle.files import file_sha256
from edgeserve.conversion.batching import of_variant
from edgeserve.conversion.job import Job
from edgeserve.conversion.memory import give_back
from edgeserve.conversion.search.made import made_layers, read_made
from edgeserve.conversion.search.onnx_recipes import OnnxRecipes
from edgeserve.conversion.search.tolerance import TOLERANCE
from edgeserve.conversion.search.workshop import FIXED_BATCH, Workshop
from edgeserve.conversion.tools.registry import (
    shortest_path,
)
from edgeserve.errors import EdgeServeError, UsageError
from edgeserve.formats.layers import precision_held
from edgeserve.formats.reading import read_model
from edgeserve.progress import Say
from edgeserve.quantize import (
    StaticQuantizer,
    VariantPlan,
    calibration_record,
)


class Builder:
    """Builds variants below `root/variants/ID`, keeping intermediates in `work`."""

    def __init__(self, job: Job, *, root: Path, work: Path, say: Say) -> None:
        self._job = job
        self._source = job.model
        self._scheme = job.target.quantization
        self._root = root
        self._say = say
        self._shop = Workshop(job, work, say)
        self._bases: dict[str, Path] = {}
        self.onnx = OnnxRecipes(job, self._shop, say)

    def build(self, plan: VariantPlan) -> Variant:
        """Make one variant. Raises what its converter or quantizer raises."""
        out = self._root / "variants" / plan.variant
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        self._say(f"making {plan.variant}", None)
        try:
            main, recipe = self._make(plan, out)
            made = read_made(main, plan.format)
            layers = made_layers(made, plan)
            batching = of_variant(made, self._job.interface)
            del made  # large ones are not kept in memory
        except BaseException:
            shutil.rmtree(out)
            raise
        finally:
            give_back(self._source.source.size_bytes)
        bindings = _read_bindings(out)
        files = tuple(self._entry(p) for p in sorted(out.rglob("*")) if p.is_file())
        return Variant(
            id=plan.variant,
            format=plan.format,
            precision=plan.precision,
            main=str(main.relative_to(self._root)),
            files=files,
            golden_tolerance=TOLERANCE[plan.precision],
            batch=FIXED_BATCH.get(plan.format, 0) if self._job.interface.max_batch else 0,
            bindings=bindings,
            recipe=recipe,
            layers=dict(layers),
            batching=batching,
        )

    def carried(self, format_name: str) -> Precision:
        """The precision of a source that is not FP32, in a format: converters may store it in FP32.

        The precision of the source where that cannot be found out.
        """
        if format_name == self._source.format:
            return self._source.precision
        try:
            return precision_held(read_model(self._base(format_name)).layers)
        except EdgeServeError:
            return self._source.precision  # building the variant says why

    def restore(
        self, quantizer: StaticQuantizer, keep: Collection[str], format_name: str
    ) -> VariantFiles:
        """Quantize with these nodes left in fp32, for `static-restored` plans to build on.

        What is returned is the file that such a plan makes, ready to be opened.
        """
        file = self.onnx.restore(quantizer, keep)
        if format_name != "onnx":
            file = self._convert_onnx(
                file, format_name, "int8", self._shop.fresh("restored-converted")
            )
        return VariantFiles("restored", file, format_name, "int8", self._job.interface)

    def files(self, variant: Variant) -> VariantFiles:
        """The variant as a runtime opens it, before there is a bundle."""
        return VariantFiles(
            variant.id,
            self._root / variant.main,
            variant.format,
            variant.precision,
            self._job.interface,
            variant.batch,
            variant.bindings,
        )

    def discard(self, variant: Variant) -> None:
        shutil.rmtree(self._root / "variants" / variant.id)

    def _entry(self, path: Path) -> FileEntry:
        return FileEntry(
            path.relative_to(self._root).as_posix(), file_sha256(path), path.stat().st_size
        )

    # by format

    def _make(self, plan: VariantPlan, out: Path) -> tuple[Path, Recipe]:
        if plan.format == "tflite":
            return self._make_tflite(plan, out)
        if plan.format == "openvino-ir" and plan.recipe in ("nncf", "weights"):
            return self._quantize_ir(plan, out)
        if plan.format not in ("onnx", "openvino-ir") and plan.precision != "fp32":
            raise UsageError(f"{plan.format} variants in {plan.precision} are not made")
        if self._source.proto is None and plan.recipe in ("plain", "cast"):
            return self._as_it_is(plan, out)
        onnx_file, recipe = self._onnx(plan)
        if plan.format == "onnx":
            return _copy_onnx(onnx_file, out), recipe
        return self._convert_onnx(onnx_file, plan.format, plan.precision, out), recipe

    def _onnx(self, plan: VariantPlan) -> tuple[Path, Recipe]:
        """The ONNX file that a plan is built on. An IR in fp16 or bf16 is made from the fp32 one."""
        if plan.recipe == "plain" and self._source.precision != "fp32":
            return self.onnx.fp32, Recipe("as it is", "edgeserve")
        if plan.precision in ("fp32", "bf16") or (
            plan.precision == "fp16" and plan.format != "onnx"
        ):
            method = "conversion" if plan.precision == "fp32" else f"cast to {plan.precision}"
            return self.onnx.fp32, Recipe(method, "edgeserve")
        return self.onnx.make(plan)

    def _quantize_ir(self, plan: VariantPlan, out: Path) -> tuple[Path, Recipe]:
        base = self._base("openvino-ir")
        options: dict[str, object] = {"precision": plan.precision}
        if plan.recipe == "weights":
            options["weights_only"] = True
            recipe = Recipe(f"weights {plan.precision}", "nncf")
        else:
            options |= self.onnx.nncf_options()
            recipe = self.onnx.nncf_recipe()
        return self._shop.convert("nncf-openvino", base, out, options), recipe

    def _as_it_is(self, plan: VariantPlan, out: Path) -> tuple[Path, Recipe]:
        """A variant of a source that is not ONNX: its own file, or another format of it."""
        same = plan.format == self._source.format
        if same and plan.precision == "bf16" and self._source.precision == "fp32":
            # The engine casts what it computes: the file is the same.
            return _copy_beside(self._source.path, out), Recipe("cast to bf16", "edgeserve")
        if same and plan.precision == self._source.precision:
            return _copy_beside(self._source.path, out), Recipe("as it is", "edgeserve")
        path = shortest_path(self._source.format, plan.format)
        return self._shop.walk(path, self._source.path, plan.precision, out), Recipe(
            "conversion", ", ".join(c.name for c in path)
        )

    def _make_tflite(self, plan: VariantPlan, out: Path) -> tuple[Path, Recipe]:
        if self._source.format == "tflite" and plan.recipe == "plain":
            return self._as_it_is(plan, out)
        base = self._base("tflite")
        if plan.recipe == "plain":
            for file in base.parent.iterdir():
                shutil.copy2(file, out / file.name)
            return out / base.name, Recipe("conversion", "onnx2tf")
        options: dict[str, object] = {"method": plan.recipe, "precision": plan.precision}
        if plan.precision == "int8":
            options["per_tensor"] = self._per_tensor_ops()
        calibration = None
        if plan.calibrated:
            options["calibration"] = str(self._shop.calibration_file)
            calibration = calibration_record(self._shop.calibration())
        main = self._shop.convert("tflite-to-tflite", base, out, options)
        return main, Recipe(
            method=f"{plan.recipe} {plan.precision}",
            tool="tflite-to-tflite",
            scheme="S8S8" if plan.recipe == "static" else None,
            per_channel=self._scheme.per_channel,
            calibration_method="moving-average minmax" if plan.calibrated else None,
            calibration=calibration,
        )

    def _per_tensor_ops(self) -> list[str]:
        """TFLite's names of the operators whose weights get one scale."""
        if not self._scheme.per_channel:
            return ["*"]
        return [] if self._scheme.per_channel_matmul else ["FULLY_CONNECTED", "BATCH_MATMUL"]

    # tools

    def _base(self, format_name: str) -> Path:
        """The fp32 file of a format, made once."""
        if format_name == self._source.format:
            return self._source.path
        if format_name not in self._bases:
            folder = self._shop.fresh(f"base-{format_name}")
            native = self._source.proto is None
            origin = self._source.path if native else self.onnx.fp32
            path = shortest_path(self._source.format, format_name)
            self._bases[format_name] = self._shop.walk(path, origin, "fp32", folder)
        return self._bases[format_name]

    def _convert_onnx(self, onnx_file: Path, format_name: str, precision: str, out: Path) -> Path:
        return self._shop.walk(shortest_path("onnx", format_name), onnx_file, precision, out)


def _copy_beside(file: Path, out: Path) -> Path:
    """Copy a file, and for an IR the weights beside it."""
    for part in (file, file.with_suffix(".bin")):
        if part.is_file():
            shutil.copyfile(part, out / f"model{part.suffix}")
    return out / f"model{file.suffix}"


def _copy_onnx(onnx_file: Path, out: Path) -> Path:
    for file in onnx_file.parent.iterdir():
        if file.name.startswith(f"{onnx_file.stem}.") and file.is_file():  # with its external data
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
