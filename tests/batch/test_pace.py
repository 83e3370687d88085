"""How many rows share a call, by what calls take."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgeserve.batch.pace import RowPace


def drive(pace: RowPace, seconds: Callable[[int], float], calls: int = 4000) -> list[int]:
    """The sizes that it chose, call by call."""
    sizes = []
    for _ in range(calls):
        sizes.append(pace.size)
        pace.ran(pace.size, pace.size, seconds(pace.size))
    return sizes


@pytest.mark.parametrize(
    ("together", "seconds", "best"),
    [
        (64, lambda n: 0.001 + 0.0001 * n, 16),
        (64, lambda n: 0.001 * n * n, 1),
        (64, lambda n: 0.001 * n + (0.004 if n != 4 else 0.001), 4),
        (4, lambda n: 0.001, 4),
        (1, lambda n: 0.001, 1),
        (64, lambda n: 0.3 + 0.01 * n, 16),
        (64, lambda n: 5.0, 1),
    ],
)
def test_the_fastest_size_is_kept(
    together: int, seconds: Callable[[int], float], best: int
) -> None:
    sizes = drive(RowPace(together, 2), seconds)
    assert set(sizes[-1000:]) == {best}


def test_sizes_whose_calls_would_take_long_are_not_tried() -> None:
    assert 16 not in drive(RowPace(64, 2), lambda n: 0.4 * n)


def test_a_size_that_fails_is_not_tried_again() -> None:
    pace = RowPace(64, 1)
    pace.too_large(16)
    assert 16 not in drive(pace, lambda n: 0.01)
    pace.too_large(4)
    assert set(drive(pace, lambda n: 0.01)) == {1}


def test_portions_hold_whole_calls_and_bounded_bytes() -> None:
    pace = RowPace(64, 1)
    assert pace.portion() == 16
    drive(pace, lambda n: 0.001)
    pace.took(16, 0.016, 1600)
    assert pace.portion() == 192
    pace.took(16, 0.0016, 16 << 20)
    assert pace.portion() == 16
    pace.alone()
    pace.took(1, 10.0, 1)
    assert pace.portion() == 1
