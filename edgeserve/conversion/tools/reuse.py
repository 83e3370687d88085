"""What converters made, kept while one command runs: several targets want the same files of the same model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from edgeserve.bundle.files import file_sha256
from edgeserve.conversion.tools.protocol import ConverterOptions

_folder: ContextVar[Path | None] = ContextVar("edgeserve_reuse", default=None)


@contextlib.contextmanager
def reusing() -> Iterator[None]:
    """Within the block, a converter that is asked twice for the same works once."""
    with tempfile.TemporaryDirectory(prefix="edgeserve-") as folder:
        token = _folder.set(Path(folder))
        try:
            yield
        finally:
            _folder.reset(token)


def place_of(converter: str, source: Path, options: ConverterOptions) -> Path | None:
    """Where the result belongs for these contents; None outside of `reusing`."""
    folder = _folder.get()
    if folder is None:
        return None
    content = [converter, _contents(source), {n: _value(v) for n, v in sorted(options.items())}]
    return folder / hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def take(place: Path, out_dir: Path) -> list[Path] | None:
    """Copy what is kept there into `out_dir`; the converter's files, or None when nothing is kept."""
    record = place.with_suffix(".json")
    if not record.is_file():
        return None
    shutil.copytree(place, out_dir, dirs_exist_ok=True)
    return [out_dir / name for name in json.loads(record.read_text("utf-8"))]


def keep(place: Path, out_dir: Path, files: list[Path]) -> None:
    """Keep all of `out_dir`, which a converter has filled."""
    shutil.copytree(out_dir, place, dirs_exist_ok=True)
    # Those of a tool environment are absolute, whatever `out_dir` is.
    names = [file.resolve().relative_to(out_dir.resolve()).as_posix() for file in files]
    place.with_suffix(".json").write_text(json.dumps(names), "utf-8")


def _contents(source: Path) -> list[tuple[str, str]]:
    """The digests of a folder's files, or of a file and what lies beside it under the same name."""
    if source.is_dir():
        files = [f for f in source.rglob("*") if f.is_file()]
    else:
        beside = [f for f in source.parent.glob(f"{source.stem}.*") if f.is_file()]
        files = [*beside, *source.parent.glob("bindings.json")]
    root = source if source.is_dir() else source.parent
    return sorted((f.relative_to(root).as_posix(), file_sha256(f)) for f in files)


def _value(value: object) -> object:
    """An option; that of a file is its content."""
    if isinstance(value, str) and value.endswith(".npz") and Path(value).is_file():
        return file_sha256(Path(value))
    return value
