"""What `convert` is asked for: the one place where an option, its unit and its default are declared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from edgeserve.bundle import Preprocess, TaskKind
from edgeserve.errors import UsageError
from edgeserve.names import NAME, NAME_RULE


class SourceOptions(msgspec.Struct, frozen=True):
    """What a converter must know about a source.

    PyTorch checkpoints: `model_class` ("module:Class"), its keyword arguments, the folders to import it from
    (the current one if none are given), dtypes of inputs that are not float32. `trust_source`: the file may
    execute code when it is opened. Hugging Face: `task`. SavedModels: `signature`.
    """

    model_class: str | None = None
    model_args: Mapping[str, object] = {}
    python_path: tuple[str, ...] = ()
    input_types: Mapping[str, str] = {}
    trust_source: bool = False
    task: str | None = None
    signature: str | None = None


class Demands(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant must keep, or it is not taken.

    `max_drop` is in percentage points of accuracy and counts with labelled data. `min_fidelity` is a share of
    equal answers (top-1, ids, texts), or a cosine where an output has no answers; None: 0.95 and 0.99.
    `min_sqnr` is in dB, for all outputs, `min_sqnr_of` by an output's name. `max_size` is in bytes,
    `max_latency` in ms of one call.
    """

    max_drop: float = 1.0
    min_fidelity: float | None = None
    min_sqnr: float | None = None
    min_sqnr_of: Mapping[str, float] = {}
    max_size: int | None = None
    max_latency: float | None = None


class Options(Demands, frozen=True, kw_only=True):
    """What `convert` is asked for; the command line's flags, one to one.

    `source` is what converters must know about sources that are not ONNX. `calibrate` is a folder of images,
    an `.npz`, `.npy` or CSV, "module:function", "command: …", the word `random`, or a callable that returns
    an iterable of samples; `evaluate` a labels CSV or an `.npz` with labels; `labels` a text file with one
    class name a line; `task` what the model is for, if it is not recognised, and `postprocess` the fields of a
    Postprocess, over those that are recognised. `recipes` restricts what is tried for int8 and int4; `max_time`, in seconds, limits
    the repair of variants that miss the bounds; `output_kinds` gives by name what outputs hold; `explain`
    ranks layers by their error.
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
    task: TaskKind | None = None
    postprocess: Mapping[str, object] = {}
    shapes: Mapping[str, tuple[int, ...]] = {}
    simplify: bool = False
    output_kinds: Mapping[str, str] = {}
    max_time: float = 600.0
    explain: bool = False
    strict: bool = False
    force: bool = False
    name: str | None = None
    tool_env: bool = True


def asked_task(text: str | None) -> TaskKind | None:
    """What a model is for; None for nothing, and for what only Hugging Face models call a task."""
    kinds: dict[str, TaskKind] = {
        "classification": "classification",
        "detection": "detection",
        "segmentation": "segmentation",
        "embedding": "embedding",
    }
    return kinds.get(text or "")


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
        raise UsageError("--calibration-samples must be at least 1")
    if options.name is not None and not NAME.fullmatch(options.name):
        raise UsageError(
            f"'{options.name}' cannot be a model's name",
            cause="it becomes part of URLs and file names",
            hint=NAME_RULE,
        )
