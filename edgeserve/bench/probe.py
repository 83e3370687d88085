"""The process behind `coldstart`: opens one subject, runs it, prints what that took as JSON.

    python -m edgeserve.bench.probe BUNDLE INDEX [--threads N] [--against MODEL] [--inject FAULT --fault-state DIR]

INDEX counts the chain from 0; -1 is the model given by --against.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bench.coldstart import ProbeFailure, Run
from edgeserve.bench.memory import peak_rss_bytes, rss_bytes
from edgeserve.bench.subjects import (
    SOURCE_INDEX,
    InjectedFaults,
    requests_of,
    select,
    source_subject,
)
from edgeserve.bundle import Bundle
from edgeserve.errors import EdgeServeError
from edgeserve.runtimes import engine_version, runtime

# Arenas grow over the first calls: peak memory is read after a few.
_CALLS: Final = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edgeserve.bench.probe")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("index", type=int)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--inject", action="append", default=[])
    parser.add_argument("--fault-state", default="")
    arguments = parser.parse_args()
    # Engines print to stdout, which is for the answer alone.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    answer: Run | ProbeFailure
    try:
        faults = InjectedFaults(tuple(arguments.inject), arguments.fault_state)
        bundle, index, against = arguments.bundle, arguments.index, arguments.against
        answer = measure(bundle, index, arguments.threads, against, faults)
    except EdgeServeError as error:
        answer = ProbeFailure(str(error), error.hint)
    except ImportError as error:
        answer = ProbeFailure(f"its runtime cannot be imported: {error}")
    os.write(answer_to, msgspec.json.encode(answer))


def measure(
    root: Path, index: int, threads: int, against: Path | None, faults: InjectedFaults
) -> Run:
    bundle = Bundle.open(root)
    if index == SOURCE_INDEX and against is not None:
        subject = source_subject(against)
    else:
        subject = select(bundle, faults=faults)[index]
    requests = requests_of(bundle)
    if subject.source is None:
        bundle.variant_files(subject.candidate.variant)  # digests are not load time
    adapter = runtime(subject.candidate.runtime)  # ours; the engine is imported when it loads
    bare = rss_bytes()
    began = time.perf_counter()
    session = subject.open_here(bundle, threads=threads)
    loaded = time.perf_counter()
    session.run(requests[0])
    first = time.perf_counter()
    for call in range(_CALLS):
        session.run(requests[call % len(requests)])
    peak = peak_rss_bytes()
    session.close()
    del session
    again = time.perf_counter()
    second = subject.open_here(bundle, threads=threads)
    reloaded = time.perf_counter()
    second.close()
    return Run(
        load_ms=1000 * (loaded - began),
        reload_ms=1000 * (reloaded - again),
        first_inference_ms=1000 * (first - loaded),
        peak_rss_bytes=peak,
        bare_rss_bytes=bare,
        runtime_version=engine_version(adapter),
    )


if __name__ == "__main__":
    main()
