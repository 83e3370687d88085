"""Samples from disk as model inputs: image folders, .npz and .npy arrays, labelled CSV lists."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.bundle import Preprocess
from edgeserve.errors import DataError
from edgeserve.preprocess import image_files, load_image
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec, as_bytes
from edgeserve.values import Misfit, fitting

LABEL_KEYS: Final = ("label", "labels", "y")


class Samples:
    """Inputs of a model, one request of batch 1 each, read when they are iterated over.

    `sha256` is over the files' names and contents, so that the same data give the same digest.
    """

    def __init__(
        self,
        source: str,
        interface: Interface,
        *,
        files: list[Path] | None = None,
        arrays: Tensors | None = None,
        preprocess: Preprocess | None = None,
        sha256: str,
        labels: list[int] | None = None,
        random: bool = False,
    ) -> None:
        self.source = source
        self.sha256 = sha256
        self.labels = labels
        self.random = random
        self._interface = interface
        self._files = files
        self._arrays = arrays or {}
        self._preprocess = preprocess

    def __len__(self) -> int:
        if self._files is not None:
            return len(self._files)
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> Tensors:
        if self._files is not None and self._preprocess is not None:
            (spec,) = self._interface.inputs
            return {spec.name: _request(load_image(self._files[index], self._preprocess), spec)}
        return {
            s.name: _request(self._arrays[s.name][index, ...], s) for s in self._interface.inputs
        }

    def __iter__(self) -> Iterator[Tensors]:
        for index in range(len(self)):
            yield self[index]

    def first_not_finite(self) -> int | None:
        """The first sample with NaN or infinity in it. Images have none."""
        spoilt = [
            ~np.isfinite(a).reshape(len(a), -1).all(axis=1)
            for a in self._arrays.values()
            if a.dtype.kind == "f" and a.size
        ]
        hits = [int(i) for i in np.flatnonzero(np.logical_or.reduce(spoilt))] if spoilt else []
        return hits[0] if hits else None

    def take(self, count: int) -> Samples:
        """At most `count` samples, evenly spread: folders are often sorted by class."""
        return self if len(self) <= count else self._pick(_spread(len(self), count))

    def leave(self, count: int) -> Samples:
        """The samples that `take(count)` does not take."""
        taken = set(_spread(len(self), count))
        return self._pick([i for i in range(len(self)) if i not in taken])

    def _pick(self, chosen: list[int]) -> Samples:
        return Samples(
            self.source,
            self._interface,
            files=[self._files[i] for i in chosen] if self._files is not None else None,
            arrays={n: a[chosen] for n, a in self._arrays.items()},
            preprocess=self._preprocess,
            sha256=self.sha256,
            labels=[self.labels[i] for i in chosen] if self.labels is not None else None,
            random=self.random,
        )


def _spread(total: int, count: int) -> list[int]:
    return list(range(total)) if total <= count else [i * total // count for i in range(count)]


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


def samples_from_arrays(
    source: str, interface: Interface, arrays: Tensors, sha256: str, labels: list[int] | None
) -> Samples:
    """Samples stacked along the first axis of each array. Raises DataError where they do not fit."""
    samples = Samples(source, interface, arrays=arrays, sha256=sha256, labels=labels)
    _ = samples[0]
    check_values(source, interface, arrays)
    return samples


def check_values(source: str, interface: Interface, arrays: Tensors) -> None:
    """Raise DataError for values that an input's type does not hold: numpy would wrap them around."""
    for spec in interface.inputs:
        if spec.numpy_dtype.kind not in "iu":
            continue
        try:
            fitting(arrays[spec.name], spec.dtype)
        except Misfit as error:
            raise DataError(
                f"{source}: values for input '{spec.name}' do not fit its type",
                cause=str(error),
                hint="edgeserve inspect MODEL shows the inputs",
            ) from None


def _from_csv(path: Path, interface: Interface, preprocess: Preprocess | None) -> Samples:
    """A list of images with labels, or a table of numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = [cell.strip().lower() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV", cause=str(error)) from None
    if any(name in header for name in ("file", "path", "image")):
        return load_labelled(path, interface, preprocess, None)
    from edgeserve.evaluate.streams import from_table

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
    "say how images become inputs: --image-size, --mean, --std … or --preprocess TOML"
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
        raise DataError("images fit models with one input", cause=f"this one has {names}")
    return preprocess


def _read_arrays(path: Path, interface: Interface) -> Tensors:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if path.suffix == ".npz":
                return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        pickled = "allow_pickle" in str(error)
        raise DataError(
            f"{path} is not a readable {path.suffix}",
            cause="it holds Python objects, whose pickles could execute anything"
            if pickled
            else str(error),
            hint="save texts as numpy.array(texts, dtype=str)" if pickled else None,
        ) from None
    if len(interface.inputs) != 1:
        raise DataError(
            f"{path} holds one array, the model has {len(interface.inputs)} inputs",
            hint="use an .npz with one array per input",
        )
    return {interface.inputs[0].name: loaded}


def _is_input(interface: Interface, name: str) -> bool:
    return any(s.name == name for s in interface.inputs)


def _request(sample: Array, spec: TensorSpec) -> Array:
    """One sample as a request: typed, with a leading axis of 1 where the model wants one.

    Raises DataError with expected and got.
    """
    kinds = {sample.dtype.kind, spec.numpy_dtype.kind}
    if spec.dtype == "BYTES" and sample.dtype.kind in "USO":
        sample = as_bytes(sample)
    elif sample.dtype != spec.numpy_dtype and not (kinds <= {"f"} or kinds <= {"i", "u"}):
        raise DataError(
            f"samples for input '{spec.name}' have the wrong type",
            cause=f"expected {spec.dtype}, got {sample.dtype}",
            hint=f"array.astype('{spec.numpy_dtype}') before saving, if that is what they mean",
        )
    shaped = sample if len(sample.shape) == len(spec.shape) else sample[None]
    if not spec.fits(shaped.shape):
        raise DataError(
            f"samples for input '{spec.name}' have the wrong shape",
            cause=f"expected [{','.join(map(str, spec.shape))}], got {list(sample.shape)} each",
            hint="the first axis of an array counts samples; edgeserve inspect MODEL shows the inputs",
        )
    return np.asarray(shaped, spec.numpy_dtype, order="C")


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
