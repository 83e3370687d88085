"""What is in a model file or a bundle: tensors, operators, size by part, digests. Runs nothing,
unless it is asked where a bundle's candidates run."""

from __future__ import annotations

from pathlib import Path

from edgeserve.formats.reading import read_model
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
    """Report on a model file. Raises what `read_model` raises."""
    return read_model(path, _READS).report()
