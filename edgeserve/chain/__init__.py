"""The chain: a bundle's candidates in order of preference, opened with fallback."""

from edgeserve.chain.batching import this_machine, try_neighbours
from edgeserve.chain.chain import Chain
from edgeserve.chain.device_health import BOARD, DeviceBoard
from edgeserve.chain.golden import check_golden, golden_batches, relative_rms_error
from edgeserve.chain.links import ChainStatus, Fallback, LinkStatus, Promotion, Replay
from edgeserve.chain.opening import (
    Attempt,
    faults_for,
    open_apart,
    open_candidate,
    open_session,
    settle,
    with_stand_ins,
)
from edgeserve.chain.options import ChainOptions
from edgeserve.chain.replay import Detour, Detoured

__all__ = [
    "BOARD",
    "Attempt",
    "Chain",
    "ChainOptions",
    "ChainStatus",
    "Detour",
    "Detoured",
    "DeviceBoard",
    "Fallback",
    "LinkStatus",
    "Promotion",
    "Replay",
    "check_golden",
    "faults_for",
    "golden_batches",
    "open_apart",
    "open_candidate",
    "open_session",
    "relative_rms_error",
    "settle",
    "this_machine",
    "try_neighbours",
    "with_stand_ins",
]
