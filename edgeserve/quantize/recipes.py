"""The recipes: which ways there are to make a precision of a format, and which are worth trying.

A recipe is a name; how it is carried out is in `conversion/search/` (`onnx_recipes.py` for ONNX, `builder.py`
for other formats). Adding one: its line in RECIPES, and where it is worth trying, below.

Tier 1 is tried at once, tier 2 where tier 1 misses the quality bounds. What cannot win is planned with the
reason, so that the report shows it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from edgeserve.bundle import Precision
from edgeserve.errors import UsageError, did_you_mean
from edgeserve.quantize.facts import ModelFacts
from edgeserve.targets.schema import Quantization

# name -> (what it is, needs calibration data)
RECIPES: Final[dict[str, tuple[str, bool]]] = {
    "plain": ("the source's own numbers, in the runtime's format", False),
    "cast": ("weights and activations in half precision", False),
    "static": ("int8 weights and activations, ranges from calibration (min-max)", True),
    "static-percentile": ("the same, ranges leave out 0.001 % of the values", True),
    "static-entropy": ("the same, ranges by least Kullback-Leibler divergence", True),
    "static-equalized": ("static, after balancing the channel ranges of neighbouring layers", True),
    "static-16x8": ("int8 weights, 16-bit activations", True),
    "static-restored": ("static, with the layers that lose precision left in fp32", True),
    "nncf": ("static int8 of the OpenVINO IR by NNCF", True),
    "nncf-onnx": ("static int8 of the ONNX graph by NNCF, run in OpenVINO", True),
    "dynamic": ("int8 weights, activations quantized while running", False),
    "weights": ("int8 or int4 weights, computed in float", False),
}
_SHORT: Final = {"openvino-ir": "openvino"}


class VariantPlan(msgspec.Struct, frozen=True):
    """One variant to make: format, precision, recipe. `skip` says why it is not even tried."""

    format: str
    precision: Precision
    recipe: str
    tier: int = 1
    skip: str | None = None

    @property
    def variant(self) -> str:
        """The variant's id: format and precision, and the recipe where it is not the usual one."""
        name = f"{_SHORT.get(self.format, self.format)}-{self.precision}"
        usual = self.recipe in ("plain", "cast") or (self.recipe, self.precision) in (
            ("static", "int8"),
            ("weights", "int4"),
        )
        return name if usual else f"{name}-{self.recipe}"

    @property
    def calibrated(self) -> bool:
        return RECIPES[self.recipe][1]


def check_names(names: Collection[str]) -> None:
    """Raise UsageError for a name that is not a recipe."""
    for name in names:
        if name not in RECIPES:
            raise UsageError(
                f"there is no recipe '{name}'",
                hint=did_you_mean(name, RECIPES, f"recipes: {', '.join(RECIPES)}"),
            )


def plans_for(
    format_name: str,
    precision: Precision,
    facts: ModelFacts,
    scheme: Quantization,
    only: Collection[str] = (),
) -> list[VariantPlan]:
    """The plans for a precision of a format, the usual one first. `only` names recipes to restrict
    them to; those are planned for the first tier, whatever they may be good for.

    Empty when the format has no such precision.
    """
    rows = _rows(format_name, precision, facts)
    if only and precision in ("int8", "int4"):
        extra = [("static-16x8", 1, None)] if format_name in ("onnx", "tflite") else []
        rows = [(n, 1, None) for n, _, _ in [*rows, *extra] if n in only]
    if scheme.full_integer:
        rows = [r for r in rows if precision != "int8" or r[0].startswith("static")]
    return [VariantPlan(format_name, precision, name, tier, skip) for name, tier, skip in rows]


_Row = tuple[str, int, str | None]
_CONVOLVES: Final = "skipped: it leaves convolutions in fp32"
_NOTHING: Final = "skipped: the network has neither convolutions nor products of matrices"
_FLOAT: Final = "skipped: weights alone make convolutions smaller, not faster"


def _rows(format_name: str, precision: Precision, facts: ModelFacts) -> list[_Row]:
    if precision == "fp32":
        return [("plain", 1, None)]
    if precision == "fp16":
        return [("cast", 1, None)] if format_name in ("onnx", "openvino-ir") else []
    if precision == "bf16":
        return [("plain", 1, None)] if format_name == "openvino-ir" else []
    if precision == "int4":
        if not facts.matmuls:
            return [("weights", 1, "skipped: the network has no constant matrices")]
        return [("weights", 1, _FLOAT if facts.convolves else None)]
    return _int8(format_name, facts)


def _int8(format_name: str, facts: ModelFacts) -> list[_Row]:
    if not facts.convolutions and not facts.matmuls and not facts.products:
        return [("static", 1, _NOTHING)]
    if facts.convolves:
        rows: list[_Row] = [("static", 1, None)]
        if format_name == "openvino-ir":
            return [
                *rows,
                ("nncf-onnx", 1, None),
                ("nncf", 1, None),
                ("static-equalized", 2, None),
                ("static-percentile", 2, None),
            ]
        if format_name == "tflite":
            return [*rows, ("dynamic", 1, None)]
        return [
            *rows,
            ("dynamic", 1, _CONVOLVES),
            ("weights", 1, _FLOAT),
            ("static-equalized", 2, None),
            ("static-percentile", 2, None),
            ("static-entropy", 2, None),
        ]
    if format_name == "openvino-ir":
        return [("nncf", 1, None), ("weights", 1, None), ("static", 2, None)]
    if format_name == "tflite":
        return [("dynamic", 1, None), ("static", 1, None), ("weights", 2, None)]
    return [("dynamic", 1, None), ("weights", 1, None), ("static", 2, None)]
