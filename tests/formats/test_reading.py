"""One reader for every format: a model file is parsed once, whatever asks about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

import edgeserve
from edgeserve.checking import check
from edgeserve.errors import SourceError
from edgeserve.formats.onnx import OnnxFile
from edgeserve.formats.reading import read_model
from edgeserve.formats.tflite import TfliteFile
from edgeserve.targets.schema import load_target
from tests.networks import small_cnn

DATA = Path(__file__).parents[1] / "data"
TARGET = """
name = "plain"
title = "onnxruntime only"
arch = ["x86_64", "aarch64", "arm64"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["int8", "fp32"]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(small_cnn(), tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "plain.toml").write_text(TARGET)
    return tmp_path / "plain.toml"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often onnx parsed each file, by its name."""
    counts: Counter[str] = Counter()
    load = onnx.load_model

    def counted(file: Any, *args: Any, **options: Any) -> onnx.ModelProto:
        counts[Path(str(file)).name] += 1
        return load(file, *args, **options)

    monkeypatch.setattr(onnx, "load_model", counted)
    return counts


def test_convert_parses_its_source_once(
    source: Path, target: Path, tmp_path: Path, parsed: Counter[str]
) -> None:
    edgeserve.convert(source, tmp_path / "m.edge", target=str(target), precision="fp32")
    assert parsed["source.onnx"] == 1


def test_check_parses_its_model_once(source: Path, target: Path, parsed: Counter[str]) -> None:
    assert check(source, [load_target(str(target))]).ok
    assert parsed["source.onnx"] == 1


def test_a_format_is_known_by_its_content_not_by_its_name(source: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "model.onnx"
    disguised.write_bytes((DATA / "digits-fp32.tflite").read_bytes())
    assert isinstance(read_model(disguised), TfliteFile)
    assert isinstance(read_model(source.rename(tmp_path / "model.tflite")), OnnxFile)


def test_a_missing_and_an_empty_file_carry_the_callers_hint(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for name, message in (("absent.onnx", "cannot be read"), ("empty.onnx", "is empty")):
        with pytest.raises(SourceError, match=message) as raised:
            read_model(tmp_path / name, "give a model")
        assert raised.value.hint == "give a model"
