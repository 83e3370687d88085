"""Whatever a conversion ends with, it leaves no session open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeserve
from edgeserve.errors import CheckFailed, DataError, EdgeServeError, UnsupportedModel
from edgeserve.runtimes.onnxruntime import OnnxRuntimeSession
from tests.conversion.tiny import F, model, node, noise, saved, value


@pytest.fixture
def open_sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OnnxRuntimeSession]]:
    """The real sessions that are open now."""
    found: list[OnnxRuntimeSession] = []
    make, close = OnnxRuntimeSession.__init__, OnnxRuntimeSession.close

    def made(self: OnnxRuntimeSession, *args: Any) -> None:
        make(self, *args)
        found.append(self)

    def closed(self: OnnxRuntimeSession) -> None:
        close(self)
        found[:] = [s for s in found if s is not self]

    monkeypatch.setattr(OnnxRuntimeSession, "__init__", made)
    monkeypatch.setattr(OnnxRuntimeSession, "close", closed)
    yield found
    assert not found


def dense() -> onnx.ModelProto:
    return model(
        [node("MatMul", "x w", "y")], [value("x", F, "n", 8)], [value("y", F, "n", 4)],
        {"w": noise(8, 4)},
    )  # fmt: skip


def random() -> onnx.ModelProto:
    return model(
        [node("RandomNormalLike", "x", "noise"), node("Add", "x noise", "y")],
        [value("x", F, "n", 8)], [value("y", F, "n", 8)],
    )  # fmt: skip


def samples(folder: Path, *, first: float = 0.0) -> str:
    values = noise(8, 8)
    values[0, 0] = first
    np.savez(folder / "x.npz", x=values)
    return str(folder / "x.npz")


@pytest.mark.parametrize(
    ("made", "first", "options", "error", "says"),
    [
        (random(), 0.0, {}, UnsupportedModel, "answers differently each time"),
        (dense(), np.nan, {}, DataError, "holds NaN"),
        (dense(), 0.0, {"max_size": 1}, CheckFailed, "within the limits"),
        (dense(), 0.0, {"precision": "int8", "recipes": ("static-16x8",), "min_sqnr": 200.0,
                        "strict": True}, CheckFailed, "--strict was given"),
    ],
    ids=["source-draws-random-numbers", "samples-hold-nan", "too-large", "strict"],
)  # fmt: skip
def test_a_conversion_that_fails_closes_what_it_opened(
    open_sessions: list[OnnxRuntimeSession],
    tmp_path: Path,
    onnxruntime_target: str,
    made: onnx.ModelProto,
    first: float,
    options: dict[str, Any],
    error: type[EdgeServeError],
    says: str,
) -> None:
    source, data = saved(made, tmp_path), samples(tmp_path, first=first)
    with pytest.raises(error, match=says):
        edgeserve.convert(
            source, tmp_path / "m.edge", target=onnxruntime_target, calibrate=data, **options
        )
    assert open_sessions == []


def test_random_inputs_that_fit_nowhere_leave_nothing_open(
    open_sessions: list[OnnxRuntimeSession], tmp_path: Path, onnxruntime_target: str
) -> None:
    # `x` is doubled by its own length, which only an even length would allow.
    made = model(
        [node("Reshape", "x shape", "y")], [value("x", F, 3)], [value("y", F, 2, 2)],
        {"shape": np.array([2, 2])},
    )  # fmt: skip
    with pytest.raises(DataError, match="random inputs do not fit"):
        edgeserve.convert(saved(made, tmp_path), tmp_path / "m.edge", target=onnxruntime_target)
    assert open_sessions == []


def test_ranking_layers_leaves_nothing_open(
    open_sessions: list[OnnxRuntimeSession], tmp_path: Path, onnxruntime_target: str
) -> None:
    report = edgeserve.convert(
        saved(dense(), tmp_path), tmp_path / "m.edge", target=onnxruntime_target,
        calibrate=samples(tmp_path), recipes=("static",), explain=True,
    )  # fmt: skip
    assert report.layers
    assert open_sessions == []
