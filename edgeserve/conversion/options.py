"""What `convert` is asked for, and what it reports."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from edgeserve.bundle import Candidate, Measured, Precision, Preprocess
from edgeserve.conversion.sources.detect import SourceOptions
from edgeserve.errors import UsageError
from edgeserve.quantize import LayerError


class Options(msgspec.Struct, frozen=True):
    """What `convert` is asked for; the command line's flags, one to one.

    `source` is what converters must be told about sources that are not ONNX.
    `calibrate` is a folder of images, an `.npz`, `.npy` or CSV, "module:function", "command: …", the word
    `random`, or a callable that returns an iterable of samples; `evaluate` a
    labels CSV or an `.npz` with labels; `labels` a text file with one class name a line. `recipes`
    restricts what is tried for int8 and int4; `max_size` is in bytes, `max_latency` in ms, `max_time`
    (for repairing what misses the bounds) in seconds; `min_sqnr` is in dB, for all outputs, `min_sqnr_of`
    by an output's name; `output_kinds` says by name what outputs hold; `explain` ranks layers by their error.
    """

    source: SourceOptions = SourceOptions()
    target: str = "auto"
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "int4"] = "auto"
    recipes: tuple[str, ...] = ()
    calibrate: str | Callable[[], Iterable[Any]] | None = None
    calibration_samples: int = 128
    evaluate: str | None = None
    preprocess: Preprocess | None = None
    labels: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}
    simplify: bool = False
    max_drop: float = 1.0
    min_fidelity: float | None = None
    min_sqnr: float | None = None
    min_sqnr_of: Mapping[str, float] = {}
    output_kinds: Mapping[str, str] = {}
    max_size: int | None = None
    max_latency: float | None = None
    max_time: float = 600.0
    explain: bool = False
    strict: bool = False
    force: bool = False
    name: str | None = None
    tool_env: bool = True


def check_options(options: Options) -> None:
    """Refuse what no conversion could make sense of. Raises UsageError naming the flag."""
    limits = {
        "--max-drop": (options.max_drop, math.inf),
        "--min-fidelity": (options.min_fidelity, 1.0),
        "--max-latency": (options.max_latency, math.inf),
        "--max-size": (options.max_size, math.inf),
        "--max-time": (options.max_time, math.inf),
    }
    for flag, (value, most) in limits.items():
        if value is not None and not 0 <= value <= most:
            wanted = "0 or more" if most == math.inf else f"0 to {most:g}"
            raise UsageError(f"{flag} is {value:g}, which is not {wanted}")
    if options.calibration_samples < 1:
        raise UsageError("--calibration-samples is 1 at least")
    if options.name is not None and not _MODEL_NAME.fullmatch(options.name):
        raise UsageError(
            f"'{options.name}' cannot be a model's name",
            cause="it becomes a part of URLs",
            hint="letters, digits, '.', '_' and '-', a letter or digit first",
        )


_MODEL_NAME: Final = re.compile(r"[^\W_][\w.-]*")


class Row(msgspec.Struct, frozen=True):
    """One tried variant in the report. `chosen` rows are in the bundle's chain; `failed` ones broke a
    bound; of the others, none on the same device is at once smaller, faster and closer to the source
    than a `pareto` one."""

    variant: str
    runtime: str
    device: str
    precision: Precision
    chosen: bool
    reason: str
    failed: bool = False
    pareto: bool = False
    size_bytes: int | None = None
    measured: Measured | None = None


class Conversion(msgspec.Struct, frozen=True):
    """What `convert` did: the bundle's path and the report. `reference` is where the source ran."""

    bundle: str
    target: str
    source_size_bytes: int
    bundle_size_bytes: int
    reference: str
    reference_latency_ms: float
    reference_accuracy: float | None
    proof_samples: int
    proof_source: str
    chain: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    layers: tuple[LayerError, ...] = ()
