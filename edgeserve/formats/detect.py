"""Telling the kinds of models apart, by names and a few bytes: no model is opened, no framework imported."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

from edgeserve.errors import SourceError, nearest

# The format of a file, by its suffix.
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
    ".mlmodel": "Core ML models are not supported: convert the model that it was made from",
    ".mlpackage": "Core ML models are not supported: convert the model that it was made from",
    ".engine": "TensorRT engines are not supported: convert the ONNX file that it was made from",
    ".plan": "TensorRT engines are not supported: convert the ONNX file that it was made from",
    ".gguf": "GGUF models are not converted",
    ".edge": "this is a bundle already: edgeserve inspect shows it",
}
# What the first bytes of some formats must be: offset, bytes, what the file is not otherwise.
_MAGIC: Final = {
    "torch-export": (0, (b"PK\x03\x04",), "a zip archive, which .pt2 files are"),
    "sklearn-skops": (0, (b"PK\x03\x04",), "a zip archive, which .skops files are"),
    "tflite": (4, (b"TFL3",), "a TFLite file: its identifier TFL3 is missing"),
    "keras": (0, (b"PK\x03\x04", b"\x89HDF"), "a Keras file: neither a zip archive nor HDF5"),
}


def format_of_content(head: bytes) -> str:
    """The format that a file's first bytes (64 will do) show; ONNX where they show nothing: a protobuf has no
    mark of its own."""
    if head[4:8] == b"TFL3":  # the FlatBuffers file identifier of schema.fbs
        return "tflite"
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<?xml", b"<net")):
        return "openvino-ir"
    return "onnx"


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
        return f"it is a TFLite file: rename it to {path.stem}.tflite"
    if head.startswith(b"\x89HDF"):
        return f"it is an HDF5 file: rename it to {path.stem}.h5 if Keras wrote it"
    if head.startswith(b"PK") and _zip_has(path, "schema.json"):
        return f"it is a skops file: rename it to {path.stem}.skops"
    return "it may be truncated or another format: copy or export it again"


def _unknown(path: Path, suffix: str) -> SourceError:
    what = f"'{suffix}'" if suffix else "a file without a suffix"
    guess = nearest(suffix, _SUFFIXES) if suffix else None
    hint = _ADVICE.get(suffix) or (f"did you mean {path.stem}{guess}?" if guess else _known())
    return SourceError(f"{path} is not a source that edgeserve reads", cause=what, hint=hint)


def _known() -> str:
    return f"sources are {' '.join(_SUFFIXES)} files, and folders with {' or '.join(_FOLDERS)}"


def _near_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    guess = nearest(path.name, [f.name for f in path.parent.iterdir()])
    return f"did you mean {path.parent / guess}?" if guess else None
