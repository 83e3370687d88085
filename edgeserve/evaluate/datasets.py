"""Samples from disk as model inputs: image folders, .npz and .npy arrays, labelled CSV lists."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.bundle import Preprocess
from edgeserve.errors import DataError
from edgeserve.evaluate.samples import LABEL_KEYS, Samples, check_values
from edgeserve.evaluate.streams import from_table
from edgeserve.preprocess import image_files
from edgeserve.tensors import Array, Interface, Tensors
from edgeserve.values import unreadable


def load_samples(path: Path, interface: Interface, preprocess: Preprocess | None) -> Samples:
    """Samples from a folder of images, an `.npz` (one array per input, first axis = samples), an `.npy`
    (models with one input) or a CSV (images with labels, or numbers). Raises DataError for empty or
    mismatched data."""
    if path.is_dir():
        return _from_folder(path, interface, preprocess)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.suffix == ".csv":
        return _from_csv(path, interface, preprocess)
    if path.suffix not in (".npz", ".npy"):
        raise DataError(
            f"{path} is neither a folder of images nor an .npz, .npy or .csv file",
            hint="pass a folder of images, an .npz with one array per input, an .npy, or a CSV",
        )
    arrays = _read_arrays(path, interface)
    labels = next(
        (arrays.pop(k) for k in LABEL_KEYS if k in arrays and not _is_input(interface, k)), None
    )
    for spec in interface.inputs:
        if spec.name not in arrays:
            raise DataError(
                f"{path} has no array for input '{spec.name}'",
                cause=f"it holds {', '.join(arrays) or 'nothing'}; the model wants {spec.describe()}",
                hint="name the arrays after the model's inputs (edgeserve inspect MODEL)",
            )
    counts = {s.name: len(arrays[s.name]) if arrays[s.name].ndim else 0 for s in interface.inputs}
    if min(counts.values()) == 0:
        raise DataError(
            f"{path} holds no samples", hint="the first axis of an array counts samples"
        )
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: inputs have different numbers of samples", cause=str(counts))
    samples = Samples(
        str(path.name),
        interface,
        arrays={s.name: arrays[s.name] for s in interface.inputs},
        sha256=_digest([path]),
        labels=None if labels is None else _indexes(labels),
    )
    _ = samples[0]  # mismatched shapes show here, not halfway through a calibration
    check_values(str(path), interface, arrays)
    return samples


def _from_csv(path: Path, interface: Interface, preprocess: Preprocess | None) -> Samples:
    """A list of images with labels, or a table of numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = [cell.strip().lower() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV", cause=str(error)) from None
    if any(name in header for name in ("file", "path", "image")):
        return load_labelled(path, interface, preprocess, None)
    return from_table(path, interface)


def load_labelled(
    path: Path, interface: Interface, preprocess: Preprocess | None, classes: list[str] | None
) -> Samples:
    """Labelled samples: a CSV with columns `file` and `label` (an index, or a name in `classes`),
    files relative to the CSV; or an `.npz` with an array `label` beside the inputs."""
    if path.suffix == ".npz":
        samples = load_samples(path, interface, preprocess)
        if samples.labels is None:
            raise DataError(
                f"{path} has no array 'label' of class indexes",
                hint="numpy.savez(FILE, label=indexes, and one array per input)",
            )
        if len(samples.labels) != len(samples):
            raise DataError(f"{path}: {len(samples)} samples but {len(samples.labels)} labels")
        return samples
    if not path.is_file():
        raise DataError(f"{path} does not exist", hint="--eval takes a labels.csv or an .npz")
    rows = _read_csv(path)
    if preprocess is None:
        raise DataError(
            f"{path} lists images, but no preprocessing is known", hint=_PREPROCESS_HINT
        )
    files = [path.parent / name for name, _ in rows]
    missing = [f for f in files if not f.is_file()]
    if missing:
        raise DataError(f"{path} lists files that do not exist", cause=f"{missing[0]} is the first")
    labels = [_label(text, classes, path) for _, text in rows]
    return Samples(
        path.name,
        interface,
        files=files,
        preprocess=_image_preprocess(interface, preprocess),
        sha256=_digest([path, *files]),
        labels=labels,
    )


_PREPROCESS_HINT: Final = (
    "set how images become inputs: --image-size, --mean, --std … or --preprocess TOML"
)


def _from_folder(path: Path, interface: Interface, preprocess: Preprocess | None) -> Samples:
    files = image_files(path)
    if not files:
        raise DataError(
            f"{path} holds no images", hint="JPEG, PNG, BMP, WebP, GIF and TIFF are read"
        )
    if preprocess is None:
        raise DataError(
            f"{path} is a folder of images, but no preprocessing is known", hint=_PREPROCESS_HINT
        )
    how = _image_preprocess(interface, preprocess)
    samples = Samples(path.name, interface, files=files, preprocess=how, sha256=_digest(files))
    _ = samples[0]
    return samples


def _image_preprocess(interface: Interface, preprocess: Preprocess) -> Preprocess:
    if len(interface.inputs) != 1:
        names = ", ".join(s.name for s in interface.inputs)
        raise DataError("images need a model with one input", cause=f"this one has {names}")
    return preprocess


def _read_arrays(path: Path, interface: Interface) -> Tensors:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if path.suffix == ".npz":
                return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(f"{path} is not a readable {path.suffix}", error) from None
    if len(interface.inputs) != 1:
        raise DataError(
            f"{path} holds one array, the model has {len(interface.inputs)} inputs",
            hint="use an .npz with one array per input",
        )
    return {interface.inputs[0].name: loaded}


def _is_input(interface: Interface, name: str) -> bool:
    return any(s.name == name for s in interface.inputs)


def _read_csv(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV", cause=str(error)) from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    file_column = next((header.index(n) for n in ("file", "path", "image") if n in header), None)
    label_column = next((header.index(n) for n in ("label", "class", "index") if n in header), None)
    if file_column is not None and label_column is not None:
        rows = rows[1:]
    else:
        file_column, label_column = 0, 1
    if not rows:
        raise DataError(f"{path} lists no samples")
    short = next((row for row in rows if len(row) <= max(file_column, label_column)), None)
    if short is not None:
        raise DataError(f"{path} has a row without file and label", cause=",".join(short))
    return [(row[file_column].strip(), row[label_column].strip()) for row in rows]


def _indexes(labels: Array) -> list[int] | None:
    """Labels as class indexes; None for what is none: names, and the numbers of a regression."""
    flat = labels.reshape(-1)
    whole = flat.dtype.kind in "iub" or (flat.dtype.kind == "f" and bool(np.all(flat % 1 == 0)))
    return [int(v) for v in flat] if whole else None


def _label(text: str, classes: list[str] | None, path: Path) -> int:
    if text.lstrip("-").isdigit():
        return int(text)
    if classes and text in classes:
        return classes.index(text)
    raise DataError(
        f"{path}: '{text}' is neither a class index nor a known class name",
        hint="--labels FILE names the classes, one a line",
    )


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
