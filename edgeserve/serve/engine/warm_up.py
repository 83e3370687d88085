"""What the first runs of a model decide: whether it runs on the event loop, and whether its batches pay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from edgeserve.chain import Chain, golden_batches
from edgeserve.serve.engine.settings import EngineSettings
from edgeserve.tensors import Tensors, join_batches

# A hop to another thread and back costs about that (docs/run.md): quicker models run on the loop.
INLINE_S: Final = 50e-6
_RUNS: Final = 10
# A batch that takes more than this share of what its requests take one by one is not worth waiting for.
_WORTH: Final = 0.95


class WarmedUp(msgspec.Struct, frozen=True):
    """`single_s` is how long one sample takes. `max_batch` is the most rows that are worth sharing, whichever candidate
    serves (1: batches do not pay); requests of up to `small` rows are run alone although larger batches pay."""

    single_s: float
    inline: bool
    max_batch: int
    small: int = 0


def warm_up(chain: Chain, settings: EngineSettings) -> WarmedUp:
    """Run golden samples until times settle. Blocks."""
    interface = chain.interface
    requests = golden_batches(interface, chain.bundle.golden()[0])
    single = _fastest(chain, lambda: requests[0])
    # Another process, now or after a step up the chain, may keep the loop waiting.
    inline = single < INLINE_S and not chain.may_wait
    largest = min(settings.max_batch or interface.max_batch, interface.max_batch)
    found = WarmedUp(single, inline, largest if settings.batching and not inline else 1)
    if min(found.max_batch, chain.batching.max_batch) <= 1:
        return found
    sizes = [n for n in settings.preferred_batches if 1 < n <= largest]
    few = min(sizes, default=min(4, largest))

    def pays(rows: int) -> bool:
        """Where a batch costs what its requests cost one by one, it only adds waiting."""
        return _fastest(chain, lambda: join_batches([requests[0]] * rows)) < _WORTH * rows * single

    if not pays(few):
        return WarmedUp(single, inline, 1)
    if sizes and few > 2 and not pays(2):
        return msgspec.structs.replace(found, small=1)
    return found


def _fastest(chain: Chain, make: Callable[[], Tensors]) -> float:
    times = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        chain.run(make())
        times.append(time.perf_counter() - began)
    return min(times[_RUNS // 2 :])  # a busy machine only makes a call longer
