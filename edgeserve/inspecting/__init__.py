"""What is in a model file or a bundle: tensors, operators, size by part, digests. Runs nothing,
unless it is asked what of a bundle runs where."""

from __future__ import annotations

from pathlib import Path

from edgeserve.errors import SourceError
from edgeserve.formats.report import ModelReport
from edgeserve.inspecting.bundles import BundleReport, inspect_bundle, place_bundle

__all__ = [
    "BundleReport",
    "ModelReport",
    "inspect_bundle",
    "inspect_model",
    "inspect_path",
    "is_bundle",
    "place_bundle",
]

_READS = "edgeserve inspect reads .onnx, .tflite, OpenVINO .xml and bundles"


def inspect_path(path: Path) -> ModelReport | BundleReport:
    """Report on a bundle folder or a model file. Raises BundleError, SourceError, DependencyMissing."""
    return inspect_bundle(path) if is_bundle(path) else inspect_model(path)


def is_bundle(path: Path) -> bool:
    """Whether a path is meant as a bundle: a folder, or an archive of one."""
    return path.is_dir() or (path.suffix == ".edge" and path.is_file())


def inspect_model(path: Path) -> ModelReport:
    """Report on a model file; its format is told by its content, not by its name.

    Raises SourceError (missing, not a model, truncated), DependencyMissing (the format's reader).
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise SourceError(f"{path} cannot be read", cause=error.strerror, hint=_READS) from None
    if not head:
        raise SourceError(f"{path} is empty", hint=_READS)
    if head[4:8] == b"TFL3":  # the FlatBuffers file identifier of schema.fbs
        from edgeserve.formats.tflite import inspect_tflite

        return inspect_tflite(path)
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<?xml", b"<net")):
        from edgeserve.formats.openvino import inspect_openvino

        return inspect_openvino(path)
    from edgeserve.formats.onnx import inspect_onnx

    return inspect_onnx(path, hint=_READS)
