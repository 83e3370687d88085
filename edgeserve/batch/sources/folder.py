"""Rows of a folder: one file a row, images and tensors, in the order of their paths."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.batch.rows import DecodedRow, Portion, RowName, RowShapes
from edgeserve.batch.sources.base import SourceIdentity
from edgeserve.bundle.files import arrays_in
from edgeserve.errors import BundleError, DataError, InvalidInput, UsageError
from edgeserve.preprocess import IMAGE_SUFFIXES, ImageReader, is_image
from edgeserve.preprocess.files import read_framed
from edgeserve.tensors import Interface, Tensors
from edgeserve.values import unreadable

_TENSORS: Final = frozenset({".npy", ".npz"})


class Folder:
    """Images go through `reader`; an `.npz` holds arrays by input name, an `.npy` the only input."""

    key = "file"

    def __init__(self, path: Path, interface: Interface, reader: ImageReader | None) -> None:
        self._path = path
        self._reader = reader
        self._shapes = RowShapes(interface)
        self._files, others = _files(path)
        self.total: int | None = len(self._files)
        self.remarks: tuple[str, ...] = (
            (f"ignored files that are neither images nor tensors: {others}",) if others else ()
        )
        if not self._files:
            raise DataError(
                f"{path} has no images, .npy or .npz files",
                cause=f"it has {others} other files" if others else "it is empty",
            )
        if reader is None:
            image = next((f for f in self._files if _suffix(f) in IMAGE_SUFFIXES), None)
            if image is not None:
                raise _takes_no_images(image, interface)

    def identity(self) -> SourceIdentity:
        """Of names, sizes and times of change: contents are not read."""
        digest = hashlib.sha256()
        for name in self._files:
            try:
                found = (self._path / name).stat()
                seen = f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n"
            except OSError:
                seen = f"{name}\0\n"
            digest.update(seen.encode("utf-8", "surrogateescape"))
        return SourceIdentity(len(self._files), digest.hexdigest())

    def portions(self, skip: int, size: Callable[[], int]) -> Iterator[Portion]:
        number, start, total = 0, skip, len(self._files)
        while start < total:
            names = self._files[start : start + size()]
            start += len(names)
            yield Portion(number, [_shown(n) for n in names], names, start / total)
            number += 1

    def decode(self, name: RowName, value: Any) -> DecodedRow:
        path = self._path / value
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidInput("the file cannot be read", cause=error.strerror) from None
        suffix = _suffix(value)
        if suffix in IMAGE_SUFFIXES:
            assert self._reader is not None
            if not is_image(content):  # a TIFF: one that a server does not take
                tensor, frame = read_framed(io.BytesIO(content), _shown(value), self._reader.how)
                spec = self._reader.spec
                return DecodedRow({spec.name: self._shapes.of(spec, tensor)}, frame)
            image = self._reader.read(content, _shown(value))
            self._reader.spec.check(image.tensor)
            return DecodedRow({self._reader.spec.name: image.tensor}, image.frame)
        if suffix == ".npz":
            return DecodedRow(self._of_npz(content, value))
        return DecodedRow(self._shapes.lone(_array(content, _shown(value))))

    def _of_npz(self, content: bytes, name: str) -> Tensors:
        try:
            arrays = arrays_in(io.BytesIO(content), name)
        except BundleError as error:
            raise InvalidInput(f"{_shown(name)} cannot be read", cause=error.cause) from None
        if set(arrays) == {"arr_0"}:
            return self._shapes.lone(arrays["arr_0"])
        return self._shapes.named(arrays)


def _array(content: bytes, name: str) -> Any:
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise unreadable(f"{name} cannot be read", error) from None


def _shown(name: str) -> str:
    """A file's name as text, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path each costs more than reading


def _files(root: Path) -> tuple[list[str], int]:
    """Images and tensors below `root`, sorted by their path from there, and how many files are neither."""
    known = IMAGE_SUFFIXES | _TENSORS
    found, others = [], 0

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read", cause=error.strerror) from None

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders.sort()
        below = os.path.relpath(folder, root)
        for name in names:
            if _suffix(name) in known:
                found.append(name if below == "." else f"{below}/{name}".replace(os.sep, "/"))
            else:
                others += 1
    return sorted(found), others


def _takes_no_images(name: str, interface: Interface) -> UsageError:
    if len(interface.inputs) != 1:
        return UsageError(
            f"{name} is an image, but the model has {len(interface.inputs)} inputs",
            hint="give an .npz per row",
        )
    return UsageError(
        f"{name} is an image, but the preprocessing of images for this model is not known",
        hint="--preprocess FILE.toml; `convert --image-size` stores it in the bundle",
    )
