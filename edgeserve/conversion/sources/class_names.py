"""Class names that a model file brings along: in the metadata of ONNX and TFLite files, or in a classifier of ONNX-ML."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path
from typing import Any, Final

from edgeserve.bundle.labels import names_in
from edgeserve.tensors import Interface, TensorSpec

_LARGEST: Final = 1_000_000  # bytes of a file of names
_MOST: Final = 100_000
# What boxes have before their scores: four numbers, or five.
_BEFORE: Final = (0, 4, 5)


def class_names(path: Path, format_name: str, proto: Any, interface: Interface) -> tuple[str, ...]:
    """The names of the classes; nothing if there are none, or if they fit no output."""
    if proto is not None:
        names = _in_metadata(proto) or _in_classifier(proto)
    else:
        names = _packed(path) if format_name == "tflite" else ()
    good = names and len(names) <= _MOST and not any("\n" in n or "\r" in n for n in names)
    return names if good and _fit(len(names), interface) else ()


def _in_metadata(proto: Any) -> tuple[str, ...]:
    """As the YOLO exporters write them: `names` is `{0: 'person', 1: 'bicycle'}`, or a list."""
    text = next((p.value for p in proto.metadata_props if p.key == "names"), "")
    if not text or len(text) > _LARGEST:
        return ()
    try:
        read = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(read, dict):
        if sorted(read, key=str) != sorted(range(len(read)), key=str):
            return ()
        read = [read[i] for i in range(len(read))]
    return tuple(str(n) for n in read) if isinstance(read, list | tuple) else ()


def _in_classifier(proto: Any) -> tuple[str, ...]:
    """The classes of a classifier of ONNX-ML, if they are texts, or numbers other than 0, 1, 2; of several the last."""
    found: tuple[str, ...] = ()
    for node in proto.graph.node:
        if node.domain != "ai.onnx.ml":
            continue
        for attribute in node.attribute:
            if attribute.name == "classlabels_strings" and attribute.strings:
                found = tuple(s.decode("utf-8", "replace") for s in attribute.strings)
            elif attribute.name in ("classlabels_ints", "classlabels_int64s") and attribute.ints:
                numbers = list(attribute.ints)
                if numbers != list(range(len(numbers))):
                    found = tuple(str(n) for n in numbers)
    return found


def _packed(path: Path) -> tuple[str, ...]:
    """A file of labels behind the model: TFLite's metadata are a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                called = info.filename.lower()
                if "label" in called and called.endswith(".txt") and info.file_size <= _LARGEST:
                    return names_in(archive.read(info).decode("utf-8"))
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, NotImplementedError, RuntimeError):
        pass
    return ()


def _fit(count: int, interface: Interface) -> bool:
    """Whether an output can have `count` classes. The shapes of a detector with NMS inside do not tell, so it fits."""
    outputs = interface.outputs
    return len(outputs) >= 3 or any(_has(spec, count) for spec in outputs)


def _has(spec: TensorSpec, count: int) -> bool:
    binary = count == 2 and spec.shape[1:] == (1,)
    sizes = {count + before for before in _BEFORE}
    return binary or any(d in sizes for d in spec.shape if isinstance(d, int))
