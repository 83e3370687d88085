"""What one test learns about devices is not known to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeserve.chain import BOARD


@pytest.fixture(autouse=True)
def _fresh_board() -> Iterator[None]:
    BOARD.forget()
    yield
    BOARD.forget()
