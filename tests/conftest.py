"""What holds for every test."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No test depends on how quick the machine is. CI tries the same cases every time: new ones are found by
# people who run the tests, not by a change that has nothing to do with them.
settings.register_profile(
    "edgeserve",
    deadline=None,
    max_examples=50,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("edgeserve")

# A shell that runs a job behind has it ignore SIGINT, and its children after it: those that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What thousands of collected tests hold is looked through by no garbage collection any more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def short_timing() -> Iterator[None]:
    """Conversions in this process time each variant for a twentieth of what users get: no test is about the figures."""
    with pytest.MonkeyPatch.context() as patch:
        for seconds in (
            "SECONDS_PER_VARIANT",
            "SECONDS_PER_FINALIST",
            "SECONDS_PER_QUICK_FINALIST",
        ):
            patch.setattr(f"edgeserve.conversion.search.search.{seconds}", 0.05)
        yield
