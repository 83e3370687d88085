"""Samples from elsewhere than arrays and images: a Python callable, a command, a table of numbers."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.errors import DataError
from edgeserve.evaluate.samples import LABEL_KEYS, Samples, samples_from_arrays
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec, as_texts

COMMAND: Final = "command:"
Source = Callable[[], Iterable[Any]]


def from_callable(make: Source, interface: Interface, limit: int, name: str) -> Samples:
    """At most `limit` samples of what `make()` yields: dictionaries of arrays by input name, or arrays
    for models with one input; without the batch axis, or with one of length 1. A key `label` is a label.

    Only that many are asked for, so it may be endless. Raises DataError, also for what `make` raises.
    """
    rows: list[Tensors] = []
    try:
        for item in islice(make(), limit):
            rows.append(_row(item, interface, len(rows)))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{name} failed after {len(rows)} samples", cause=f"{type(error).__name__}: {error}"
        ) from error
    if not rows:
        raise DataError(f"{name} yields no samples")
    labels = [
        int(row.pop("label")) for row in rows if "label" in row and not _takes_label(interface)
    ]
    digest = hashlib.sha256()
    for row in rows:
        for key in sorted(row):
            digest.update(
                key.encode() + str(row[key].dtype).encode() + str(row[key].shape).encode()
            )
            digest.update(_content(row[key]))
    try:
        arrays = {s.name: np.stack([row[s.name] for row in rows]) for s in interface.inputs}
    except ValueError as error:
        raise DataError(f"{name} yields samples of different shapes", cause=str(error)) from None
    return samples_from_arrays(
        name, interface, arrays, digest.hexdigest(), labels if len(labels) == len(rows) else None
    )


def named_callable(text: str) -> Source:
    """The callable that "module:function" names; modules of the current folder are found.

    Raises DataError.
    """
    module, _, attribute = text.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{text} cannot be imported", cause=str(error)) from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise DataError(f"{text} is not a function", cause=f"it is {type(found).__name__}")
    source: Source = found
    return source


def from_command(text: str, interface: Interface, work: Path) -> tuple[Path, str]:
    """Run a command that writes an `.npz` or `.npy` to its stdout; the file, and its name for reports.

    Raises DataError with the end of what it wrote to stderr.
    """
    command = shlex.split(text)
    name = Path(command[0]).name if command else "command"
    output = work / "samples.bin"
    try:
        with output.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, check=False)
    except (OSError, IndexError) as error:
        raise DataError(f"'{text}' cannot be run", cause=str(error)) from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
        raise DataError(
            f"'{text}' ended with exit code {done.returncode}", cause=" | ".join(said) or None
        )
    with output.open("rb") as file:
        magic = file.read(6)
    suffix = {b"PK": ".npz", b"\x93N": ".npy"}.get(magic[:2])
    if suffix is None:
        raise DataError(
            f"'{text}' wrote neither an .npz nor an .npy to its stdout",
            hint="numpy.savez(sys.stdout.buffer, **arrays)",
        )
    return output.rename(output.with_suffix(suffix)), name


def from_table(path: Path, interface: Interface) -> Samples:
    """Samples from a CSV of numbers, or of texts for an input that takes them: a header, one row a sample, as
    many columns as the one input has elements a sample; a column `label` is none of them. Raises DataError."""
    if len(interface.inputs) != 1:
        raise DataError(f"{path} is a table, which needs a model with one input")
    (spec,) = interface.inputs
    try:
        text = path.read_text("utf-8")
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV", cause=str(error)) from None
    if len(rows) < 2:
        raise DataError(f"{path} holds no samples", hint="a header, then one row a sample")
    header = [cell.strip().lower() for cell in rows[0]]
    label = next((header.index(k) for k in LABEL_KEYS if k in header), None)
    values, labels = [], []
    read = _reader(spec)
    for number, row in enumerate(rows[1:], start=2):
        try:
            cells = [read(cell) for i, cell in enumerate(row) if i != label]
            if label is not None:
                labels.append(int(float(row[label])))
        except (ValueError, IndexError):
            raise DataError(
                f"{path}, line {number}, has a value that is not a number", cause=",".join(row)
            ) from None
        values.append(cells)
    widths = sorted({len(cells) for cells in values})
    if len(widths) > 1:
        raise DataError(f"{path} has rows of different lengths", cause=str(widths))
    shape = [d for d in spec.shape[1:] if isinstance(d, int)]
    array: Array = np.asarray(values, object if spec.dtype == "BYTES" else None)
    if spec.numpy_dtype.kind == "f" and spec.dtype != "BF16":
        array = array.astype(spec.numpy_dtype)
    if int(np.prod(shape)) == widths[0]:
        array = array.reshape(len(values), *shape)
    return samples_from_arrays(
        path.name,
        interface,
        {spec.name: array},
        hashlib.sha256(text.encode()).hexdigest(),
        labels if label is not None else None,
    )


def _reader(spec: TensorSpec) -> Callable[[str], Any]:
    """What makes a cell a value of the input's type; whole numbers stay exact. Raises ValueError."""
    if spec.dtype == "BYTES":
        return str.encode
    if spec.numpy_dtype.kind in "iu":
        return _whole
    return float


def _whole(cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        number = float(cell)
        if not number.is_integer():
            raise ValueError(cell) from None
        return int(number)


def imbalance(labels: list[int]) -> str | None:
    """A remark when some classes have many times as many samples as others."""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) > 1 and counts.max() >= _SKEWED * counts.min() and counts.max() >= _SKEWED:
        return (
            f"classes are unevenly represented: the most frequent one has {counts.max()} samples, the "
            f"rarest {counts.min()}"
        )
    return None


_SKEWED: Final = 10


def _row(item: Any, interface: Interface, index: int) -> Tensors:
    if not isinstance(item, Mapping):
        if len(interface.inputs) != 1:
            raise DataError(f"sample {index} is one array, the model has several inputs")
        item = {interface.inputs[0].name: item}
    missing = [s.name for s in interface.inputs if s.name not in item]
    if missing:
        raise DataError(f"sample {index} has no input '{missing[0]}'", cause=f"it has {list(item)}")
    row = as_texts({str(name): np.asarray(value) for name, value in item.items()})
    for spec in interface.inputs:
        array = row[spec.name]
        if array.ndim == len(spec.shape) and array.ndim and array.shape[0] == 1:
            row[spec.name] = array.reshape(array.shape[1:])
    return row


def _content(array: Array) -> bytes:
    if array.dtype == object:  # its own bytes are addresses
        return b"".join(len(t).to_bytes(8) + t for t in array.reshape(-1))
    return np.ascontiguousarray(array).tobytes()


def _takes_label(interface: Interface) -> bool:
    return any(s.name == "label" for s in interface.inputs)
