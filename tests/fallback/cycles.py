"""A device that is lost and comes back, again and again; what this process then still holds.

python -m tests.fallback.cycles --cycles 1000
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from edgeserve.bundle import Bundle
from edgeserve.chain import Chain, ChainOptions
from edgeserve.isolation import IsolatedSession
from tests.bundles import linear, linear_bundle
from tests.waiting import wait_for


@dataclass(frozen=True)
class Held:
    """What a process holds: open descriptors, child processes, threads, mapped segments, named shared
    memory on the machine, resident MB."""

    descriptors: int
    children: int
    threads: int
    segments: int
    named: int
    resident_mb: float


def held() -> Held:
    gc.collect()
    me = psutil.Process()
    maps = Path("/proc/self/maps").read_text()
    return Held(
        me.num_fds(),
        len(me.children(recursive=True)),
        threading.active_count(),
        maps.count("memfd:edgeserve"),
        len(list(Path("/dev/shm").iterdir())),
        me.memory_info().rss / 1e6,
    )


def run_cycles(folder: Path, cycles: int, every: int = 100) -> list[Held]:
    """Kill the isolated process and wait until it is back, comparing each answer; what was held at the start, after
    each `every` cycles, and at the end."""
    options = ChainOptions(
        inject=("gpu:stand-in",), reopen_s=0.01, stable_s=0.0, threads=1, spin=False, standby="warm"
    )
    found = []
    with Chain(Bundle.open(linear_bundle(folder)), options) as chain:
        for cycle in range(cycles + 1):
            check(chain, cycle)
            if cycle in (5, cycles) or (cycle and cycle % every == 0):
                wait_for(lambda: not chain.keeper._retired)  # lost ones are closed a moment later
                found.append(held())
            if cycle == cycles:
                break
            assert isinstance(chain.session, IsolatedSession)
            os.kill(chain.session.pid, signal.SIGKILL)
            check(chain, cycle)
            wait_for(lambda: chain.candidate.device == "gpu")
        assert len(chain.fallbacks) == len(chain.promotions) == cycles
    return found


def check(chain: Chain, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(1 + seed % 8, 4)).astype(np.float32)
    outputs, _ = chain.run({"x": x})
    np.testing.assert_allclose(outputs["y"], linear(x), rtol=1e-5, atol=1e-6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run_cycles(Path(folder), arguments.cycles)
    for sample in found:
        print(sample)
    print(f"{arguments.cycles} cycles in {time.monotonic() - began:.0f} s")
    return 0 if leaked(found) is None else 1


def leaked(found: list[Held]) -> str | None:
    """What grew between the first sample and the last, None if nothing did."""
    first, last = found[0], found[-1]
    for name in ("descriptors", "children", "threads", "segments"):
        if getattr(last, name) > getattr(first, name):
            return f"{name}: {getattr(first, name)} -> {getattr(last, name)}"
    return None


if __name__ == "__main__":
    sys.exit(main())
