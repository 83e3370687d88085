"""Source files made by their frameworks, in the converters' own tool environments."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from edgeserve.conversion.options import Options, SourceOptions
from edgeserve.conversion.sources.importing import Imported, to_onnx
from edgeserve.conversion.tools.registry import converter_called, tool_environment
from edgeserve.formats.detect import detect_format
from edgeserve.progress import silent
from edgeserve.tensors import Tensors


def run_script(converter: str, script: str, folder: Path) -> None:
    """Run Python code in the tool environment of a converter, in `folder`."""
    python = tool_environment(converter_called(converter)).ensure(lambda what, share: None)
    (folder / "make.py").write_text(script)
    done = subprocess.run([python, "make.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def imported(
    path: Path,
    work: Path,
    options: SourceOptions | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Imported:
    asked = Options(source=options or SourceOptions(), shapes=shapes or {})
    return to_onnx(path, detect_format(path), asked, work, silent)


def run_onnx(path: Path, inputs: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(str(path))
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def interface(path: Path) -> dict[str, list[int | str]]:
    """The shapes of a file's inputs and outputs, by name."""
    session = onnxruntime.InferenceSession(str(path))
    return {v.name: v.shape for v in (*session.get_inputs(), *session.get_outputs())}


def load(path: Path) -> Tensors:
    """The arrays of an .npz that a script wrote."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
