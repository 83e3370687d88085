"""A model whose external data are links, as engines open it: the Hugging Face cache is made of such links,
and engines refuse those that lead out of the model's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgeserve.checking.model import OnnxModel
from edgeserve.formats.onnx_weights import all_tensors, external_files


@contextlib.contextmanager
def without_links(model: OnnxModel) -> Iterator[OnnxModel]:
    """The model; one of linked files at a place of its own, with the files themselves beside each other."""
    files = external_files(model.path, all_tensors(model.proto))
    if not files or not any(_is_linked(f, model.path.parent) for f in (model.path, *files)):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="edgeserve-check-") as folder:
        for file in (model.path, *files):
            place = Path(folder) / file.relative_to(model.path.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), place)
            except OSError:  # another file system
                shutil.copyfile(file, place)
        yield msgspec.structs.replace(model, path=Path(folder) / model.path.name)


def _is_linked(file: Path, folder: Path) -> bool:
    return file.resolve() != folder.resolve() / file.relative_to(folder)
