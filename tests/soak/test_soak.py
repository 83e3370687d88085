"""A shorter soak than `python -m tests.soak.soak --requests 1000000`, by the same rules."""

from __future__ import annotations

import sys

import pytest

from tests.soak.soak import DRIFT_LIMIT, soak

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_nothing_is_left_behind() -> None:
    found = soak(300_000)
    assert found.load.wrong == 0
    assert found.rude > 100
    assert found.reloads > 10
    assert found.drift < DRIFT_LIMIT, [s.rss for s in found.samples]
    assert found.leaks() == []
