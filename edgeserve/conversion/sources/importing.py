"""From a source of another format to ONNX, by its converters; and the digest of a source."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle.files import file_sha256
from edgeserve.conversion.options import Options, SourceOptions
from edgeserve.conversion.tools.registry import run_converter, shortest_path
from edgeserve.errors import EdgeServeError, UsageError
from edgeserve.progress import Say


class OutputVerification(msgspec.Struct, frozen=True):
    """One output's error over all samples; `scale` is the RMS of the framework's own values."""

    max_abs_error: float
    relative_rms_error: float
    scale: float


class Verification(msgspec.Struct, frozen=True):
    """How far the ONNX file is from the framework's own answers on the same inputs (a converter's
    `verification.json`)."""

    framework: str
    framework_version: str
    samples: int
    max_abs_error: float
    relative_rms_error: float
    outputs: Mapping[str, OutputVerification]


class Imported(msgspec.Struct, frozen=True):
    """A source as ONNX.

    `shapes` are those still to be fixed in the ONNX file: tracing a checkpoint takes them as examples,
    and leaves the batch dynamic. `converter` is "" for a source that is ONNX already.
    """

    onnx: Path
    verification: Verification | None
    converter: str
    shapes: Mapping[str, tuple[int, ...]]


def to_onnx(path: Path, format_name: str, options: Options, work: Path, say: Say) -> Imported:
    """Turn a source of another format into ONNX below `work`, an existing folder.

    Raises what run_converter raises, naming `path` and not a file between; UnsupportedModel when no
    converter leads from the format to ONNX.
    """
    if format_name == "onnx":
        return Imported(path, None, "", options.shapes)
    given = _converter_options(path, options.source, options.shapes)
    current, verification, names = path, None, []
    for index, converter in enumerate(shortest_path(format_name, "onnx")):
        out = work / f"source-{index}-{converter.output_format}"
        if out.exists():
            shutil.rmtree(out)
        out.mkdir()
        say(f"converting {path.name} to {converter.output_format}", None)
        try:
            current = run_converter(
                converter, current, out, given, tool_env=options.tool_env, say=say
            )[0]
        except EdgeServeError as error:
            error.message = error.message.replace(current.name, path.name)
            error.args = (error.message,)
            error.hint = error.hint or _HINTS.get(format_name)
            raise
        verification = _verification(out) or verification
        names.append(converter.name)
    left = {} if format_name in _TRACED else options.shapes
    return Imported(current, verification, ", ".join(names), left)


# Formats whose converters need shapes as examples and do not fix them.
_TRACED: Final = {"torch-checkpoint"}
_HINTS: Final = {
    "torch-export": "docs/sources.md shows how .pt2 files are written",
    "torch-checkpoint": "docs/sources.md shows what a checkpoint needs (--shape, --input-type); .pt2 files need "
    "nothing else",
    "sklearn-skops": "docs/sources.md shows which models can be converted",
    "sklearn-pickle": "docs/sources.md shows which models can be converted",
    "huggingface": "docs/sources.md shows which models and tasks can be converted",
    "keras": "docs/sources.md shows which models can be converted",
    "tf-saved-model": "--signature names another; docs/sources.md shows which can be converted",
}


def source_digest(path: Path) -> tuple[str, int]:
    """(sha256, bytes) of a file; of a folder, over its files' relative paths and contents in order."""
    if path.is_file():
        return file_sha256(path), path.stat().st_size
    digest, size = hashlib.sha256(), 0
    files = {f.relative_to(path).as_posix(): f for f in path.rglob("*") if f.is_file()}
    for name in sorted(files):
        # Lengths are fixed, so that no other tree gives the same bytes.
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(bytes.fromhex(file_sha256(files[name])))
        size += files[name].stat().st_size
    return digest.hexdigest(), size


def _converter_options(
    path: Path, options: SourceOptions, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, object]:
    """As converters read them; folders are absolute, for a converter may run elsewhere."""
    given: dict[str, object] = {}
    if shapes:
        given["input_shapes"] = {name: list(shape) for name, shape in shapes.items()}
    if options.model_class:
        folders = options.python_path or (".",)
        for folder in folders:
            if not Path(folder).is_dir():
                raise UsageError(f"--python-path is not a folder: {folder}")
        given["model_class"] = options.model_class
        given["model_args"] = dict(options.model_args)
        given["python_path"] = [str(Path(folder).resolve()) for folder in folders]
    if options.input_types:
        given["input_types"] = dict(options.input_types)
    if options.task:
        given["task"] = options.task
    if options.signature:
        given["signature"] = options.signature
    if options.trust_source:
        given["trust_source"] = True
    try:
        json.dumps(given)
    except TypeError as error:
        raise UsageError(f"{path.name}: --model-arg takes JSON values", cause=str(error)) from None
    return given


def _verification(folder: Path) -> Verification | None:
    file = folder / "verification.json"
    return msgspec.json.decode(file.read_bytes(), type=Verification) if file.exists() else None
