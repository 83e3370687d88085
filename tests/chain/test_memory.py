"""What fits a device's memory, learned in bytes."""

from __future__ import annotations

from edgeserve.chain.memory import Extent, Room


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    room = Room(Clock())
    assert room.takes(Extent(16, 1600))
    room.cut(Extent(16, 1600))
    assert (room.rows, room.step(Extent(16, 1600)), room.takes(Extent(16, 1600))) == (8, 8, False)
    room.cut(Extent(8, 800))
    assert room.step(Extent(16, 1600)) == 4
    assert room.takes(Extent(4, 400))


def test_large_requests_that_did_not_fit_do_not_cut_batches_of_small_ones() -> None:
    room = Room(Clock())
    room.cut(Extent(4, 4_000_000))
    assert room.takes(Extent(32, 3200))
    assert room.step(Extent(32, 3200)) == 32
    assert room.step(Extent(4, 4_000_000)) == 2
    assert room.step(Extent(2, 8_000_000)) == 1  # no less than a row


def test_after_a_minute_it_is_tried_whole_again_and_forgotten_if_that_fits() -> None:
    clock = Clock()
    room = Room(clock)
    room.cut(Extent(16, 1600))
    clock.now = 61.0
    assert room.takes(Extent(16, 1600))
    room.fitted(Extent(4, 400))  # tells nothing
    assert room.rows == 8
    room.cut(Extent(16, 1600))
    assert not room.takes(Extent(16, 1600))
    clock.now = 122.0
    room.fitted(Extent(16, 1600))
    assert (room.rows, room.takes(Extent(64, 6400))) == (0, True)


def test_rows_without_bytes_can_be_cut() -> None:
    room = Room(Clock())
    room.cut(Extent(16, 16))
    assert room.step(Extent(16, 16)) == 8
