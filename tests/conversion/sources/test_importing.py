"""From a source to ONNX: digests, and what is refused before a converter runs."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from edgeserve.conversion.options import Options, SourceOptions
from edgeserve.conversion.sources.importing import source_digest, to_onnx
from edgeserve.errors import DependencyMissing, UnsupportedModel, UsageError
from edgeserve.formats.detect import detect_format
from edgeserve.progress import silent


def write(path: Path, content: bytes | dict[str, bytes]) -> Path:
    """A file of these bytes, or a zip archive of these entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, inner in content.items():
                archive.writestr(name, inner)
    return path


def test_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt", b"weights")
    assert source_digest(path) == (hashlib.sha256(b"weights").hexdigest(), 7)


def test_digest_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: bytes) -> Path:
        for file, content in files.items():
            write(tmp_path / name / file.replace("__", "/"), content)
        return tmp_path / name

    one = source_digest(folder("one", a__x=b"12", b=b"3"))
    assert one[1] == 3
    assert source_digest(folder("same", b=b"3", a__x=b"12")) == one
    others = [
        folder("content", a__x=b"12", b=b"4"),
        folder("renamed", a__y=b"12", b=b"3"),
        folder("moved", ax=b"12", b=b"3"),
        folder("shifted", a__x=b"1", b=b"23"),
        folder("fewer", a__x=b"12"),
    ]
    assert one not in [source_digest(other) for other in others]
    assert len({source_digest(other)[0] for other in others}) == len(others)


def test_onnx_needs_no_converter(digits: Path, tmp_path: Path) -> None:
    shapes = {"image": (1, 64)}
    imported = to_onnx(digits, "onnx", Options(shapes=shapes), tmp_path, silent)
    assert (imported.onnx, imported.verification, imported.shapes) == (digits, None, shapes)


def attempt(path: Path, work: Path, options: SourceOptions | None = None, format: str = "") -> None:
    asked = Options(source=options or SourceOptions(), tool_env=False)
    to_onnx(path, format or detect_format(path), asked, work, silent)


def test_without_tool_environments_the_pip_command_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.skops", {"schema.json": b"{}"})
    with pytest.raises(DependencyMissing) as raised:
        attempt(path, tmp_path)
    assert "pip install" in str(raised.value.hint)
    assert "skl2onnx==" in str(raised.value.hint)


def test_a_format_without_a_converter_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.bmodel", b"x")
    with pytest.raises(UnsupportedModel, match="no installed converter leads from bmodel to onnx"):
        attempt(path, tmp_path, format="bmodel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SourceOptions("net:Net", python_path=("/nowhere",)), "--python-path is not a folder"),
        (SourceOptions("net:Net", {"size": {1, 2}}), "--model-arg takes JSON values"),
    ],
)
def test_options_that_cannot_be_are_told_at_once(
    tmp_path: Path, options: SourceOptions, message: str
) -> None:
    path = write(tmp_path / "m.pt", b"\x80\x02}q")
    with pytest.raises(UsageError, match=message):
        attempt(path, tmp_path, options)
