"""Which format a source is, and what is reported of files that are none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgeserve.errors import SourceError
from edgeserve.formats.detect import detect_format

DATA = Path(__file__).parents[1] / "data"
DIGITS = Path(__file__).parents[2] / "edgeserve" / "demo" / "files" / "digits.onnx"


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


def test_real_onnx_tflite_and_ir_files(tmp_path: Path) -> None:
    assert detect_format(DIGITS) == "onnx"
    assert detect_format(DATA / "small-cnn-fp32.tflite") == "tflite"
    import openvino

    openvino.save_model(openvino.convert_model(str(DIGITS)), str(tmp_path / "digits.xml"))
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
        ("m.onx", b"x", "is not a source that edgeserve reads: '.onx'", "did you mean m.onnx?"),
        ("m.tflit", b"x", "is not a source", "did you mean m.tflite?"),
        ("m.safetensors", b"x", "is not a source", "folder with config.json"),
        ("m.engine", b"x", "is not a source", "TensorRT"),
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
        ("m.h5", b"\x1c\x00\x00\x00TFL3", "is not a Keras file", "rename it to m.tflite"),
        ("m.keras", {"schema.json": b"{}"}, "lacks config.json", "rename it to m.skops"),
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
