"""Exit codes and hints are part of the errors themselves."""

from __future__ import annotations

import inspect

import pytest

from edgeserve import errors
from edgeserve.errors import DependencyMissing, EdgeServeError, nearest

KINDS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, EdgeServeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_in_the_drawn_hierarchy_with_its_exit_code(
    kind: type[EdgeServeError],
) -> None:
    line = next(x for x in (errors.__doc__ or "").splitlines() if kind.__name__ in x.split())
    if kind is not EdgeServeError:
        assert line.split(kind.__name__)[1].split()[0] == str(kind.exit_code)


def test_a_missing_dependency_names_the_pip_command() -> None:
    error = DependencyMissing("openvino", needed_for="the runtime openvino", extra="openvino")
    assert error.hint == "pip install 'edgeserve[openvino]'"
    assert error.exit_code == 3


def test_nearest_finds_a_misspelt_word_and_nothing_for_a_strange_one() -> None:
    assert nearest("cpu-x68", ["cpu-x86", "intel-npu"]) == "cpu-x86"
    assert nearest("zzzz", ["cpu-x86", "intel-npu"]) is None
