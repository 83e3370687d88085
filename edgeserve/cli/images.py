"""Preprocessing from flags and from a TOML file, flags first; postprocessing from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeserve.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from edgeserve.bundle import Preprocess


def preprocess_from(file: Path | None, flags: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing that `file` and `flags` describe together; None when neither says anything.

    Raises UsageError naming the file and field, or the flag.
    """
    import msgspec

    from edgeserve.bundle import Preprocess

    values: dict[str, Any] = _read(file, "preprocess") if file is not None else {}
    if flags.get("image_size") is not None:
        values["height"], values["width"] = _size(str(flags["image_size"]))
    for key in ("resize", "crop_ratio", "interpolation", "channels", "layout", "scale"):
        if flags.get(key) is not None:
            values[key] = flags[key]
    for key in ("mean", "std"):
        if flags.get(key) is not None:
            values[key] = _numbers(f"--{key}", str(flags[key]))
    if not values:
        return None
    where = str(file) if file is not None else "the image flags"
    if "height" not in values or "width" not in values:
        raise UsageError(
            f"{where} give no image size", hint="--image-size 224, or height and width"
        )
    unknown = sorted(set(values) - set(Preprocess.__struct_fields__))
    if unknown:
        raise UsageError(
            f"{where}: unknown field '{unknown[0]}'",
            hint=did_you_mean(unknown[0], Preprocess.__struct_fields__, None),
        )
    for key in ("mean", "std"):
        if isinstance(values.get(key), int | float):
            values[key] = [values[key]]
    try:
        result = msgspec.convert(values, Preprocess)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where} describe no preprocessing", cause=str(error)) from None
    channels = 1 if result.channels == "L" else 3
    for key, numbers in (("mean", result.mean), ("std", result.std)):
        if len(numbers) not in (1, channels):
            raise UsageError(f"{where}: {key} has {len(numbers)} numbers for {channels} channels")
    if 0.0 in result.std or not 0.0 < result.crop_ratio <= 1.0:
        raise UsageError(f"{where}: std must not be 0, and crop_ratio is above 0 and at most 1")
    return result


def postprocess_from(file: Path) -> dict[str, Any]:
    """The fields of a postprocess, alone in a file or in its table `[postprocess]`; `convert` checks them against the
    model. Raises UsageError for a file that cannot be read or says nothing."""
    values = _read(file, "postprocess")
    if not values:
        raise UsageError(
            f"{file} says nothing of a postprocess",
            hint='kind = "classification"; docs/postprocess.md shows a file for each kind',
        )
    return values


def _read(file: Path, table: str) -> dict[str, Any]:
    import tomllib

    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} is not a readable TOML file", cause=str(error)) from None
    # One file may hold both tables.
    others = {"preprocess", "postprocess"} - {table}
    inner = data.get(table, {} if others & set(data) else data)
    return dict(inner) if isinstance(inner, dict) else {}


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if not all(p.isdigit() and int(p) > 0 for p in parts) or len(parts) > 2:
        raise UsageError(f"--image-size {text} is neither N nor HxW")
    return int(parts[0]), int(parts[-1])


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{flag} {text} is not a list of numbers", hint=f"{flag} 0.5,0.5,0.5"
        ) from None
