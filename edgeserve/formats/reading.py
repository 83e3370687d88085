"""One reader for every format that engines open: a file is parsed once, and asked what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgeserve.errors import SourceError
from edgeserve.formats.detect import format_of_content
from edgeserve.formats.layers import Layers
from edgeserve.formats.report import ModelReport


class ModelReader(Protocol):
    """A parsed model file: `OnnxFile`, `TfliteFile` or `OpenVinoFile`."""

    path: Path

    @property
    def format(self) -> str: ...

    @property
    def layers(self) -> Layers:
        """Layers by the precision of their weights."""
        ...

    def report(self) -> ModelReport:
        """What it holds. Raises SourceError for a file that is damaged."""
        ...


def read_model(path: Path, hint: str | None = None) -> ModelReader:
    """Parse a model file; its format is recognised by its content, not by its name.

    Raises SourceError (missing, empty, not a model, truncated), with `hint` for what is not a model;
    DependencyMissing (the format's reader).
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise SourceError(f"{path} cannot be read", cause=error.strerror, hint=hint) from None
    if not head:
        raise SourceError(f"{path} is empty", hint=hint)
    found = format_of_content(head)
    if found == "tflite":
        from edgeserve.formats.tflite import TfliteFile

        return TfliteFile(path)
    if found == "openvino-ir":
        from edgeserve.formats.openvino import OpenVinoFile

        return OpenVinoFile(path)
    from edgeserve.formats.onnx import OnnxFile

    return OnnxFile(path, hint) if hint else OnnxFile(path)
