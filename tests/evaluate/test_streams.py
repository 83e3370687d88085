"""Samples from callables, commands and tables."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeserve
from edgeserve.conversion.data import Data
from edgeserve.conversion.options import Options
from edgeserve.errors import DataError
from edgeserve.evaluate import load_samples
from edgeserve.evaluate.streams import from_callable, imbalance
from edgeserve.tensors import Interface, TensorSpec

VECTOR = Interface(
    (TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 3)),)
)
PAIR = Interface(
    (TensorSpec("a", "FP32", ("batch", 2)), TensorSpec("b", "INT64", ("batch", 3))),
    (TensorSpec("y", "FP32", ("batch", 3)),),
)


def endless() -> Iterator[dict[str, Any]]:
    for i in itertools.count():
        yield {"a": np.full(2, i, np.float32), "b": np.full((1, 3), i), "label": i % 2}


def test_an_endless_callable_is_asked_for_what_is_needed() -> None:
    samples = from_callable(endless, PAIR, 5, "endless")
    assert len(samples) == 5
    assert samples.labels == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(samples[3]["a"], np.full((1, 2), 3, np.float32))
    assert samples[3]["b"].shape == (1, 3)
    assert samples.sha256 == from_callable(endless, PAIR, 5, "again").sha256
    assert samples.sha256 != from_callable(endless, PAIR, 4, "fewer").sha256


def test_one_input_takes_plain_arrays() -> None:
    samples = from_callable(lambda: [[1.0, 2, 3, 4], [5, 6, 7, 8.5]], VECTOR, 9, "lists")
    np.testing.assert_array_equal(samples[1]["x"], np.array([[5, 6, 7, 8.5]], np.float32))


def broken() -> Iterator[Any]:
    yield {"x": np.zeros(4, np.float32)}
    raise RuntimeError("no more disk in the reader")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken, "broken failed after 1 samples: RuntimeError: no more disk"),
        (list, "yields no samples"),
        (lambda: [{"z": np.zeros(4)}], "has no input 'x'"),
        (lambda: [np.zeros(4, np.float32), np.zeros(5, np.float32)], "different shapes"),
        (lambda: [np.zeros(7, np.float32)], "wrong shape"),
        (lambda: [np.array(["a", "b", "c", "d"])], "wrong type"),
    ],
)
def test_what_a_callable_does_wrong_is_told(make: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_callable(make, VECTOR, 9, getattr(make, "__name__", "it"))


def loaded(calibrate: Any) -> Data:
    return Data.load(VECTOR, Options(calibrate=calibrate, calibration_samples=8))


def test_a_function_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_samples.py").write_text(
        "def some():\n    return ([i, 0.0, 0.0, 1.0] for i in range(100))\n"
    )
    monkeypatch.chdir(tmp_path)
    data = loaded("my_samples:some")
    assert data.calibration is not None
    assert (data.calibration.source, len(data.calibration)) == ("my_samples:some", 8)
    assert len(data.proof) == 92
    with pytest.raises(DataError, match="my_samples:none cannot be imported"):
        loaded("my_samples:none")


def command(code: str) -> str:
    return f"command: {shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def test_a_command_writes_arrays() -> None:
    code = "import numpy as n, sys; n.save(sys.stdout.buffer, n.ones((50, 4), 'f4'))"
    data = loaded(command(code))
    assert data.calibration is not None
    assert len(data.calibration) == 8
    assert data.calibration.source.startswith("python")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no camera')", "exit code 1: no camera"),
        ("print('hello')", "neither an .npz nor an .npy"),
        ("", "neither an .npz nor an .npy"),
    ],
)
def test_what_a_command_does_wrong_is_told(code: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        loaded(command(code))


def test_a_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(DataError, match="'no-such-program' cannot be run"):
        loaded("command: no-such-program")


def test_a_table_of_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("p,q,label,r,s\n" + "".join(f"{i},1,{i % 3},2,3.5\n" for i in range(5)))
    samples = load_samples(file, VECTOR, None)
    assert samples.labels == [0, 1, 2, 0, 1]
    np.testing.assert_array_equal(samples[4]["x"], np.array([[4, 1, 2, 3.5]], np.float32))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c,d\n1,2,3,x\n", "line 2, has a value that is not a number"),
        ("a,b,c,d\n1,2,3,4\n1,2\n", "rows of different lengths"),
        ("a,b,c,d\n", "holds no samples"),
        ("a,b\n1,2\n", "wrong shape"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        load_samples(tmp_path / "rows.csv", VECTOR, None)


def test_uneven_classes_are_remarked() -> None:
    assert imbalance([0] * 50 + [1] * 2) is not None
    assert imbalance([0] * 50 + [1] * 40) is None
    assert imbalance([0, 0, 0]) is None


@pytest.mark.slow
def test_convert_takes_a_callable(tmp_path: Path) -> None:
    from tests.bundles import linear_model

    (tmp_path / "m.onnx").write_bytes(linear_model().SerializeToString())
    random = np.random.default_rng(0)

    def samples() -> Iterator[Any]:
        while True:
            yield random.normal(size=4).astype(np.float32)

    report = edgeserve.convert(
        tmp_path / "m.onnx", tmp_path / "m.edge", target="cpu-arm64", calibrate=samples,
        calibration_samples=32, min_fidelity=0.0,
    )  # fmt: skip
    assert report.proof_source.endswith("samples")
    assert any(r.precision == "int8" and r.measured for r in report.rows)
