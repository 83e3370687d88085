"""An error keeps its class and its texts on its way to another process."""

from __future__ import annotations

import msgspec
import pytest

from edgeserve.errors import (
    DependencyMissing,
    DeviceLost,
    EdgeServeError,
    EnvironmentProblem,
    InferenceFailed,
    InputFailed,
    ModelNotFound,
)
from edgeserve.wire.failures import Failure


class TwoWords(EnvironmentProblem):
    """Makes its texts itself."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}", hint="say more")


@pytest.mark.parametrize(
    "error",
    [
        EdgeServeError("what", cause="why", hint="do"),
        ModelNotFound("no model"),
        InputFailed("it fails", cause="on NaN"),
        DeviceLost("it died", cause="SIGSEGV", hint="wait"),
        DependencyMissing("onnx", needed_for="this"),
        TwoWords("a", "b"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_the_same_in_another_process(error: EdgeServeError) -> None:
    data = msgspec.msgpack.encode(Failure.of(error))
    again = msgspec.msgpack.decode(data, type=Failure).error()
    assert type(again) is type(error)
    assert again.exit_code == error.exit_code
    for field in ("message", "cause", "hint"):
        assert getattr(again, field) == getattr(error, field)
    assert str(again) == str(error)


def test_an_unknown_class_becomes_one_that_is_known() -> None:
    failure = Failure("NoSuchError", "x")
    assert type(failure.error()) is EnvironmentProblem
    assert type(failure.error(InferenceFailed)) is InferenceFailed


def test_long_texts_are_cut() -> None:
    failure = Failure.of(EdgeServeError("m" * 50, cause="c" * 5), 10)
    assert (failure.message, failure.cause) == ("m" * 10 + "…", "ccccc")
