"""How each recipe makes a quantized ONNX file from the fp32 one.

Adding a recipe: a function here with its line in `_MAKERS`; its name, its description and where it is worth
trying in `quantize/recipes.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle import Precision, Recipe
from edgeserve.conversion.job import Job
from edgeserve.conversion.search.workshop import Workshop
from edgeserve.errors import EdgeServeError, UnsupportedModel, UsageError
from edgeserve.progress import Say
from edgeserve.quantize import (
    CalibrationMethod,
    StaticQuantizer,
    Tail,
    VariantPlan,
    beyond_fp16,
    calibration_record,
    quantize_onnx_dynamic,
    quantize_onnx_weights,
)
from edgeserve.targets.schema import Quantization

log = logging.getLogger(__name__)


class OnnxRecipes:
    """Quantizes the source of one job, each recipe once; what several of them need is computed once."""

    def __init__(self, job: Job, shop: Workshop, say: Say) -> None:
        self._job = job
        self._say = say
        self._made: dict[tuple[Precision, str], tuple[Path, Recipe]] = {}
        self.shop = shop

    def make(self, plan: VariantPlan) -> tuple[Path, Recipe]:
        """The ONNX file of a plan, and how it was made. Raises what its quantizer or converter raises."""
        key = plan.precision, plan.recipe
        if key not in self._made:
            maker = _MAKERS.get(plan.recipe)
            if maker is None:
                raise UsageError(f"the recipe {plan.recipe} makes no ONNX variants")
            file = self.shop.fresh(f"{plan.precision}-{plan.recipe}") / "model.onnx"
            self._made[key] = file, maker(self, file, plan.precision)
        return self._made[key]

    def restore(self, quantizer: StaticQuantizer, keep: Collection[str]) -> Path:
        """Quantize with these nodes left in fp32; `static-restored` plans are built on the last such file."""
        self._say(f"quantizing with {len(keep)} nodes left in fp32", None)
        file = self.shop.fresh("restored") / "model.onnx"
        self._made["int8", "static-restored"] = file, quantizer.quantize(file, keep=keep)
        return file

    @property
    def restored(self) -> Path:
        """The file that `restore` quantized last."""
        return self._made["int8", "static-restored"][0]

    @property
    def fp32(self) -> Path:
        """The source as one checked ONNX file (and its external data, if any).

        Raises UnsupportedModel for sources that have no ONNX behind them.
        """
        if self._job.model.file is None:
            raise UnsupportedModel(
                f"this is made from ONNX, and the source is {self._job.model.format}",
                hint="convert the model that it was made from, if you have it",
            )
        return self._job.model.file

    @cached_property
    def static(self) -> StaticQuantizer:
        """The static quantizer, its ranges computed once. Raises UsageError without calibration data."""
        return self.static_by(self._job.target.quantization, "static")

    def static_by(self, scheme: Quantization, name: str) -> StaticQuantizer:
        """A static quantizer with another scheme; `name` is that of its scratch folder."""
        calibration = self.shop.calibration()

        def progress(done: int, total: int) -> None:
            self._say(f"calibrating on {total} samples", done / total)

        folder = self.shop.fresh(f"ranges-{name}")
        return StaticQuantizer(self.fp32, calibration, scheme, folder, progress)

    @property
    def scheme(self) -> Quantization:
        return self._job.target.quantization

    @property
    def tails(self) -> tuple[Tail, ...]:
        """What static quantization left in fp32 by itself, if it was tried."""
        static = self.__dict__.get("static")
        return static.tails if isinstance(static, StaticQuantizer) else ()

    @cached_property
    def beyond_fp16(self) -> dict[str, float]:
        """Values of the source, by name, that FP16 may not hold, with their largest magnitude."""
        model = self._job.model
        if model.proto is None or model.precision != "fp32":
            return {}
        self._say("looking for values beyond fp16", None)
        try:
            return beyond_fp16(self.fp32, self._job.data.proof, self.shop.fresh("reach"))
        except EdgeServeError:
            raise
        except Exception as error:  # noqa: BLE001 - an engine's or onnx's own: the search goes on without
            log.warning("values beyond fp16 could not be looked for: %s", error)
            return {}

    def nncf_options(self) -> dict[str, object]:
        """What NNCF's converters take, for an ONNX file or an IR alike."""
        return {
            "calibration": str(self.shop.calibration_file),
            "transformer": self._job.model.facts.attends,
            "reduce_range": self.scheme.reduce_range,
        }

    def nncf_recipe(self) -> Recipe:
        return Recipe(
            method="static int8",
            tool="nncf",
            scheme="mixed preset" + (", transformer" if self._job.model.facts.attends else ""),
            per_channel=True,
            calibration_method="minmax",
            calibration=calibration_record(self.shop.calibration()),
        )


_Maker = Callable[[OnnxRecipes, Path, Precision], Recipe]


def _static(method: CalibrationMethod) -> _Maker:
    return lambda recipes, file, _: recipes.static.quantize(file, method)


def _equalized(recipes: OnnxRecipes, file: Path, precision: Precision) -> Recipe:
    if recipes.static.equalized is None:
        raise UnsupportedModel("skipped: its channel ranges are already balanced")
    recipe = recipes.static.equalized.quantize(file)
    return msgspec.structs.replace(recipe, method="static int8, equalized")


def _wide_activations(recipes: OnnxRecipes, file: Path, precision: Precision) -> Recipe:
    wide = msgspec.structs.replace(recipes.scheme, activation_type="uint16")
    return recipes.static_by(wide, "static-16x8").quantize(file)


def _dynamic(recipes: OnnxRecipes, file: Path, precision: Precision) -> Recipe:
    return quantize_onnx_dynamic(recipes.fp32, file, file.parent)


def _weights(recipes: OnnxRecipes, file: Path, precision: Precision) -> Recipe:
    return quantize_onnx_weights(recipes.fp32, file, 4 if precision == "int4" else 8)


def _nncf(recipes: OnnxRecipes, file: Path, precision: Precision) -> Recipe:
    options = recipes.nncf_options()
    recipes.shop.convert("nncf-onnx", recipes.static.prepared, file.parent, options)
    return recipes.nncf_recipe()


def _cast(recipes: OnnxRecipes, file: Path, precision: Precision) -> Recipe:
    options = {"precision": "fp16", "fp32_values": sorted(recipes.beyond_fp16)}
    recipes.shop.convert("onnx-to-onnx", recipes.fp32, file.parent, options)
    return Recipe("cast to fp16", "onnx-to-onnx")


_MAKERS: Final[dict[str, _Maker]] = {
    "static": _static("minmax"),
    "static-percentile": _static("percentile"),
    "static-entropy": _static("entropy"),
    "static-equalized": _equalized,
    "static-16x8": _wide_activations,
    "dynamic": _dynamic,
    "weights": _weights,
    "nncf-onnx": _nncf,
    "cast": _cast,
}
