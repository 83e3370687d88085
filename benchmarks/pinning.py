"""Two OpenVINO models in one process, with their threads pinned to cores as OpenVINO does it, and without.

    python benchmarks/pinning.py efficientnet_lite0.edge

The bundle's first OpenVINO candidate is opened twice, one thread each, and called by one thread each: one
alone, then both at the same time. Pinned and not pinned take turns; the ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeserve.bundle import Bundle
from edgeserve.chain import golden_batches, open_candidate
from edgeserve.runtimes import Session
from edgeserve.tensors import Tensors


def opened(bundle: Bundle, pinning: str) -> Session:
    candidate = next(c for c in bundle.manifest.chain if c.runtime == "openvino")
    options = {**candidate.options, "ENABLE_CPU_PINNING": pinning}
    changed = msgspec.structs.replace(candidate, options=options)
    return open_candidate(bundle, changed, threads=1, spin=False)


def rate(sessions: Sequence[Session], inputs: Tensors, seconds: float) -> float:
    """Calls a second, of all sessions."""
    counts = [0] * len(sessions)
    end = time.perf_counter() + seconds

    def call(index: int) -> None:
        while time.perf_counter() < end:
            sessions[index].run(inputs)
            counts[index] += 1

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    inputs = golden_batches(bundle.manifest.interface, bundle.golden()[0])[0]
    models = {pinning: [opened(bundle, pinning) for _ in range(2)] for pinning in ("YES", "NO")}
    rates: dict[tuple[str, int], list[float]] = {(p, n): [] for p in models for n in (1, 2)}
    for sessions in models.values():
        rate(sessions, inputs, 0.5)  # warm
    for _ in range(arguments.rounds):
        for (pinning, count), found in rates.items():
            found.append(rate(models[pinning][:count], inputs, arguments.seconds))
    print(f"{'pinned':8}{'one, /s':>10}{'two, /s':>10}{'two / one':>11}")
    for pinning in models:
        one, two = rates[pinning, 1], rates[pinning, 2]
        ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
        print(
            f"{pinning.lower():8}{statistics.median(one):10.0f}{statistics.median(two):10.0f}{ratio:11.2f}"
        )


if __name__ == "__main__":
    main()
