"""Sources that are not ONNX: which format a file or folder is, its digest, and the way from it to ONNX.

Detection reads names and a few bytes; it opens no model and imports no framework.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle.files import file_sha256
from edgeserve.conversion.tools.registry import run_converter, shortest_path
from edgeserve.errors import EdgeServeError, SourceError, UsageError, nearest
from edgeserve.progress import Say

# A file's suffix, and the format it stands for.
_SUFFIXES: Final = {
    ".onnx": "onnx",
    ".pt2": "torch-export",
    ".pt": "torch-checkpoint",
    ".pth": "torch-checkpoint",
    ".skops": "sklearn-skops",
    ".pkl": "sklearn-pickle",
    ".pickle": "sklearn-pickle",
    ".joblib": "sklearn-pickle",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".tflite": "tflite",
    ".xml": "openvino-ir",
}
# A file in a folder, and the format of that folder.
_FOLDERS: Final = {"saved_model.pb": "tf-saved-model", "config.json": "huggingface"}
# What people try, and what helps.
_ADVICE: Final = {
    ".bin": "give the .xml beside it (OpenVINO IR), or the folder with config.json (Hugging Face)",
    ".safetensors": "give the folder with config.json beside it (Hugging Face)",
    ".pb": "give the folder of the SavedModel; a frozen graph must be saved as one again",
    ".ckpt": "PyTorch: save the state_dict as .pt, or torch.export.save(…) as .pt2",
    ".mlmodel": "Core ML is no source: convert the model that it was made from",
    ".mlpackage": "Core ML is no source: convert the model that it was made from",
    ".engine": "a TensorRT engine is no source: convert the ONNX file that it was made from",
    ".plan": "a TensorRT engine is no source: convert the ONNX file that it was made from",
    ".gguf": "GGUF models are not converted",
    ".edge": "that is a bundle already: edgeserve inspect shows it",
}
# What the first bytes of some formats must be: offset, bytes, what the file is not otherwise.
_MAGIC: Final = {
    "torch-export": (0, (b"PK\x03\x04",), "a zip archive, which .pt2 files are"),
    "sklearn-skops": (0, (b"PK\x03\x04",), "a zip archive, which .skops files are"),
    "tflite": (4, (b"TFL3",), "a TFLite file: its identifier TFL3 is not there"),
    "keras": (0, (b"PK\x03\x04", b"\x89HDF"), "a Keras file: neither a zip archive nor HDF5"),
}


class SourceOptions(msgspec.Struct, frozen=True):
    """What a converter must be told about a source.

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


def detect_format(path: Path) -> str:
    """The format's name, as converters call it. Raises SourceError, with a hint, for anything else."""
    if not path.exists():
        raise SourceError(f"{path} does not exist", hint=_near_file(path))
    if path.is_dir():
        return _folder_format(path)
    suffix = path.suffix.lower()
    found = _SUFFIXES.get(suffix)
    if found is None:
        raise _unknown(path, suffix)
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty", hint="copy or export the model again")
    _check_content(path, found)
    return found


def to_onnx(
    path: Path,
    format: str,
    options: SourceOptions,
    shapes: Mapping[str, tuple[int, ...]],
    work: Path,
    *,
    tool_env: bool,
    say: Say,
) -> Imported:
    """Turn a source of another format into ONNX below `work`, an existing folder.

    Raises what run_converter raises, naming `path` and not a file between; UnsupportedModel when no
    converter leads from the format to ONNX.
    """
    if format == "onnx":
        return Imported(path, None, "", shapes)
    given = _converter_options(path, options, shapes)
    current, verification, names = path, None, []
    for index, converter in enumerate(shortest_path(format, "onnx")):
        out = work / f"source-{index}-{converter.output_format}"
        if out.exists():
            shutil.rmtree(out)
        out.mkdir()
        say(f"converting {path.name} to {converter.output_format}", None)
        try:
            current = run_converter(converter, current, out, given, tool_env=tool_env, say=say)[0]
        except EdgeServeError as error:
            error.message = error.message.replace(current.name, path.name)
            error.args = (error.message,)
            error.hint = error.hint or _HINTS.get(format)
            raise
        verification = _verification(out) or verification
        names.append(converter.name)
    left = {} if format in _TRACED else shapes
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


def _folder_format(path: Path) -> str:
    for name, found in _FOLDERS.items():
        if (path / name).is_file():
            return found
    if (path / "manifest.json").is_file():
        raise SourceError(f"{path} is a bundle, not a source", hint=_ADVICE[".edge"])
    inside = [f for f in sorted(path.iterdir()) if f.suffix.lower() in _SUFFIXES]
    raise SourceError(
        f"{path} is a folder without a model",
        cause=f"neither {' nor '.join(_FOLDERS)} is in it",
        hint=f"give the file: {inside[0]}" if inside else _known(),
    )


def _check_content(path: Path, found: str) -> None:
    with path.open("rb") as file:
        head = file.read(4096)
    if wrong := _not_a_model(head):
        raise SourceError(f"{path} is not a model", hint=wrong)
    if found in _MAGIC:
        offset, magics, what = _MAGIC[found]
        if not any(head[offset:].startswith(magic) for magic in magics):
            raise SourceError(f"{path} is not {what}", hint=_other(path, head))
    if found == "keras" and head.startswith(b"PK") and not _zip_has(path, "config.json"):
        raise SourceError(
            f"{path} is not a Keras file",
            cause="its archive lacks config.json",
            hint=_other(path, head),
        )
    if found == "openvino-ir" and b"<net" not in head:
        raise SourceError(
            f"{path} is not OpenVINO IR", cause="it holds no <net …>", hint=_other(path, head)
        )
    if found == "openvino-ir" and not path.with_suffix(".bin").is_file():
        raise SourceError(
            f"{path} lacks its weights", hint=f"copy {path.with_suffix('.bin').name} beside it"
        )


def _zip_has(path: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return name in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _not_a_model(head: bytes) -> str | None:
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: fetch the file itself with git lfs pull"
    if head[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, perhaps of a failed download"
    return None


def _other(path: Path, head: bytes) -> str:
    """What the first bytes say the file is instead."""
    if head[4:8] == b"TFL3":
        return f"it is a TFLite file: call it {path.stem}.tflite"
    if head.startswith(b"\x89HDF"):
        return f"it is an HDF5 file: call it {path.stem}.h5 if Keras wrote it"
    if head.startswith(b"PK") and _zip_has(path, "schema.json"):
        return f"it is a skops file: call it {path.stem}.skops"
    return "it may be truncated or another format: copy or export it again"


def _unknown(path: Path, suffix: str) -> SourceError:
    what = f"'{suffix}'" if suffix else "a file without a suffix"
    guess = nearest(suffix, _SUFFIXES) if suffix else None
    hint = _ADVICE.get(suffix) or (f"did you mean {path.stem}{guess}?" if guess else _known())
    return SourceError(f"{path} is no source edgeserve reads", cause=what, hint=hint)


def _known() -> str:
    return f"sources are {' '.join(_SUFFIXES)} files, and folders with {' or '.join(_FOLDERS)}"


def _near_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    guess = nearest(path.name, [f.name for f in path.parent.iterdir()])
    return f"did you mean {path.parent / guess}?" if guess else None
