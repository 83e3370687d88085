"""The chain: a bundle's candidates in order of preference, opened with fallback."""

from edgeserve.chain.chain import Attempt, Chain, ChainOptions, Fallback, open_candidate
from edgeserve.chain.golden import check_golden, golden_batches, relative_rms_error

__all__ = [
    "Attempt",
    "Chain",
    "ChainOptions",
    "Fallback",
    "check_golden",
    "golden_batches",
    "open_candidate",
    "relative_rms_error",
]
