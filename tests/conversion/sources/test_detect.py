"""Which format a source is, what is said about files that are none, and digests."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from edgeserve.conversion.sources.detect import (
    SourceOptions,
    detect_format,
    source_digest,
    to_onnx,
)
from edgeserve.errors import DependencyMissing, SourceError, UnsupportedModel, UsageError

DATA = Path(__file__).parents[2] / "data"


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


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("m.pt2", {"m/models/model.json": b"{}"}, "torch-export"),
        ("m.pt", {"m/data.pkl": b""}, "torch-checkpoint"),
        ("m.PTH", b"\x80\x02}q", "torch-checkpoint"),
        ("m.skops", {"schema.json": b"{}"}, "sklearn-skops"),
        ("m.pkl", b"\x80\x04", "sklearn-pickle"),
        ("m.joblib", b"\x80\x04", "sklearn-pickle"),
        ("m.keras", {"config.json": b"{}"}, "keras"),
        ("m.h5", b"\x89HDF\r\n\x1a\n", "keras"),
    ],
)
def test_files_are_known_by_suffix_and_first_bytes(
    tmp_path: Path, name: str, content: bytes | dict[str, bytes], wanted: str
) -> None:
    assert detect_format(write(tmp_path / name, content)) == wanted


def test_real_onnx_tflite_and_ir_files(digits: Path, tmp_path: Path) -> None:
    assert detect_format(digits) == "onnx"
    assert detect_format(DATA / "small-cnn-fp32.tflite") == "tflite"
    import openvino

    openvino.save_model(openvino.convert_model(str(digits)), str(tmp_path / "digits.xml"))
    assert detect_format(tmp_path / "digits.xml") == "openvino-ir"
    (tmp_path / "digits.bin").unlink()
    with pytest.raises(SourceError, match="lacks its weights") as raised:
        detect_format(tmp_path / "digits.xml")
    assert "digits.bin" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("inside", "wanted"),
    [("config.json", "huggingface"), ("saved_model.pb", "tf-saved-model")],
)
def test_folders_are_known_by_a_file_in_them(tmp_path: Path, inside: str, wanted: str) -> None:
    write(tmp_path / "model" / inside, b"{}")
    assert detect_format(tmp_path / "model") == wanted


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("m.onx", b"x", "is no source edgeserve reads: '.onx'", "did you mean m.onnx?"),
        ("m.tflit", b"x", "is no source", "did you mean m.tflite?"),
        ("m.safetensors", b"x", "is no source", "folder with config.json"),
        ("m.engine", b"x", "is no source", "TensorRT"),
        ("model", b"x", "a file without a suffix", ".onnx .pt2 .pt"),
        ("m.pt", b"", "is empty", "again"),
        ("m.pt2", b"\x80\x02}", "is not a zip archive", "truncated or another format"),
        (
            "m.pkl",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is not a model",
            "git lfs pull",
        ),
        ("m.tflite", b"\n<!DOCTYPE html><html>", "is not a model", "web page"),
        ("m.tflite", b"\x00" * 16, "identifier TFL3", "truncated"),
        ("m.h5", b"\x1c\x00\x00\x00TFL3", "is not a Keras file", "call it m.tflite"),
        ("m.keras", {"schema.json": b"{}"}, "lacks config.json", "call it m.skops"),
        ("m.keras", b"PK\x03\x04broken", "lacks config.json", "truncated"),
        ("m.xml", b"<?xml version='1.0'?><project/>", "is not OpenVINO IR", "another format"),
    ],
)
def test_other_files_say_what_helps(
    tmp_path: Path, name: str, content: bytes | dict[str, bytes], message: str, hint: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(SourceError) as raised:
        detect_format(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)
    assert hint in str(raised.value.hint)
    assert raised.value.exit_code == 2


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "resnet.onnx", b"x")
    with pytest.raises(SourceError, match="does not exist") as raised:
        detect_format(tmp_path / "resnt.onnx")
    assert str(raised.value.hint) == f"did you mean {tmp_path / 'resnet.onnx'}?"
    with pytest.raises(SourceError) as raised:
        detect_format(tmp_path / "nowhere" / "m.onnx")
    assert "there is no folder" in str(raised.value.hint)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="folder without a model") as raised:
        detect_format(tmp_path)
    assert ".onnx" in str(raised.value.hint)
    file = write(tmp_path / "m.onnx", b"x")
    with pytest.raises(SourceError) as raised:
        detect_format(tmp_path)
    assert raised.value.hint == f"give the file: {file}"
    write(tmp_path / "manifest.json", b"{}")
    with pytest.raises(SourceError, match="is a bundle"):
        detect_format(tmp_path)


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
    imported = to_onnx(
        digits,
        "onnx",
        SourceOptions(),
        shapes,
        tmp_path,
        tool_env=False,
        say=lambda what, share: None,
    )
    assert (imported.onnx, imported.verification, imported.shapes) == (digits, None, shapes)


def attempt(path: Path, work: Path, options: SourceOptions | None = None, format: str = "") -> None:
    to_onnx(
        path,
        format or detect_format(path),
        options or SourceOptions(),
        {},
        work,
        tool_env=False,
        say=lambda what, share: None,
    )


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
