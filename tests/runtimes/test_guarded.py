"""Whatever an adapter raises is an EdgeServeError with the engine's words; values are never narrowed silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import VariantFiles
from edgeserve.errors import BeyondEngine, DeviceLost, InferenceFailed, UnsupportedModel
from edgeserve.runtimes import LoadOptions, Placement, RuntimeInfo, Session
from edgeserve.runtimes.guarded import asked_placement, load_guarded
from edgeserve.runtimes.narrowing import beyond, fits_in
from edgeserve.tensors import Interface, Tensors, TensorSpec

SPEC = TensorSpec("x", "FP32", (1,))
FILES = VariantFiles("v", Path("v"), "any", "fp32", Interface((SPEC,), (SPEC,)))


class Broken:
    """An engine that fails at everything but loading, each time with another exception."""

    inputs = outputs = (SPEC,)
    device = "cpu"
    concurrency = 1

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, inputs: Tensors) -> Tensors:
        raise self._error

    def placement(self) -> Placement:
        raise self._error

    def close(self) -> None:
        raise self._error


class Adapter:
    """A third party's runtime."""

    name = "acme"
    formats: tuple[str, ...] = ("any",)
    requires: tuple[str, ...] = ()

    def __init__(self, at_load: Exception | None, later: Exception) -> None:
        self._at_load = at_load
        self._later = later

    def probe(self) -> RuntimeInfo:
        return RuntimeInfo("acme", "1")

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        if self._at_load is not None:
            raise self._at_load
        return Broken(self._later)


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyError("x"), RuntimeError()])
def test_what_an_engine_raises_has_its_words(error: Exception) -> None:
    with pytest.raises(
        UnsupportedModel, match=f"acme cannot open 'v' on 'cpu': {type(error).__name__}"
    ):
        load_guarded(Adapter(error, error), FILES, "cpu", LoadOptions())
    session = load_guarded(Adapter(None, error), FILES, "cpu", LoadOptions())
    with pytest.raises(InferenceFailed, match=f"the engine failed on cpu: {type(error).__name__}"):
        session.run({"x": np.zeros(1, np.float32)})
    assert session.placement().describe() == "placement unknown, unknown"
    session.close()


def test_a_missing_engine_and_a_lost_device_stay_what_they_are() -> None:
    with pytest.raises(ImportError):
        load_guarded(Adapter(ImportError("acme"), ValueError()), FILES, "cpu", LoadOptions())
    with pytest.raises(DeviceLost):
        asked_placement(Broken(DeviceLost("gone")))


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([], True),
        ([2**31 - 1, -(2**31)], True),
        ([0, 2**31], False),
        ([-(2**31) - 1], False),
    ],
)
def test_values_beyond_a_narrower_type_are_found(values: list[int], fits: bool) -> None:
    assert fits_in(np.array(values, np.int64), np.dtype(np.int32)) == fits


def test_the_error_names_input_and_type() -> None:
    error = beyond("openvino", "ts", np.dtype(np.int32))
    assert isinstance(error, BeyondEngine)
    assert str(error) == "openvino computes input 'ts' in INT32: a value is outside INT32"


def test_an_input_that_the_conversion_dropped_may_be_sent() -> None:
    pytest.importorskip("ai_edge_litert")
    from edgeserve.runtimes import runtime
    from tests.runtimes.test_litert import DATA

    file = DATA / "digits-fp32.tflite"
    plain = runtime("litert").load(
        VariantFiles("d", file, "tflite", "fp32", _digits(file)), "cpu", LoadOptions()
    )
    request = {s.name: np.zeros(tuple(map(int, s.shape)), np.float32) for s in plain.inputs}
    interface = _digits(file)
    more = Interface((*interface.inputs, TensorSpec("unused", "INT64", (1, 3))), interface.outputs)
    session = runtime("litert").load(
        VariantFiles("d", file, "tflite", "fp32", more), "cpu", LoadOptions()
    )
    got = session.run({**request, "unused": np.zeros((1, 3), np.int64)})
    wanted = plain.run(request)
    assert all(np.array_equal(got[n], wanted[n]) for n in wanted)


def _digits(file: Path) -> Interface:
    from edgeserve.conversion.sources.native import read_native

    return read_native(file, "tflite").interface
