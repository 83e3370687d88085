"""Load time, first inference and peak memory of a subject, each taken in fresh processes.

The processes are `python -m edgeserve.bench.probe`. Since a driver that crashes or hangs takes its process
with it, a subject that does not survive its probe is never opened in the measuring process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from edgeserve.bench.subjects import Skipped, Subject
from edgeserve.bundle import Bundle

TIMEOUT_S: Final = 180.0


class Run(msgspec.Struct, frozen=True, tag="run"):
    """What one probe process measured. Times in ms, memory in bytes.

    `load_ms` includes importing the engine, `reload_ms` does not; `bare_rss_bytes` is Python, numpy
    and edgeserve before the engine was imported; the files are in the system's cache.
    """

    load_ms: float
    reload_ms: float
    first_inference_ms: float
    peak_rss_bytes: int
    bare_rss_bytes: int
    runtime_version: str | None


class ProbeFailure(msgspec.Struct, frozen=True, tag="failure"):
    """Why a probe process measured nothing."""

    reason: str
    hint: str | None = None


class ColdStart(msgspec.Struct, frozen=True):
    """Medians over `processes` fresh processes; the highest of their peaks."""

    processes: int
    load_ms: float
    reload_ms: float
    first_inference_ms: float
    peak_rss_bytes: int
    bare_rss_bytes: int
    runtime_version: str | None


def cold_starts(
    bundle: Bundle,
    subjects: Sequence[Subject],
    *,
    threads: int = 0,
    processes: int = 3,
    progress: Callable[[float], None] | None = None,
) -> tuple[dict[str, ColdStart], list[Skipped]]:
    """Probe every subject, in turns. Results by the subjects' keys."""
    runs: dict[str, list[Run]] = {s.key: [] for s in subjects}
    skipped: dict[str, Skipped] = {}
    for turn in range(processes):
        for done, subject in enumerate(subjects):
            if progress is not None:
                progress((turn + done / len(subjects)) / processes)
            if subject.key in skipped:
                continue
            answer = probe(bundle.path, subject, threads=threads)
            if isinstance(answer, ProbeFailure):
                skipped[subject.key] = Skipped(
                    subject.label, subject.candidate.device, "open", answer.reason, answer.hint
                )
            else:
                runs[subject.key].append(answer)
    found = {key: _joined(r) for key, r in runs.items() if key not in skipped}
    return found, list(skipped.values())


def probe(
    bundle: Path, subject: Subject, *, threads: int = 0, timeout_s: float = TIMEOUT_S
) -> Run | ProbeFailure:
    """Measure `subject` in a process of its own."""
    # -P: a file of the current folder must not stand in for a module.
    command = [sys.executable, "-P", "-m", "edgeserve.bench.probe", str(bundle), str(subject.index)]
    command += ["--threads", str(threads)]
    if subject.source is not None:
        command += ["--against", str(subject.source)]
    for text in subject.faults.texts:
        command += ["--inject", text, "--fault-state", subject.faults.state]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return ProbeFailure(f"it did not load and run within {timeout_s:g} s")
    try:
        return msgspec.json.decode(done.stdout, type=Run | ProbeFailure)
    except msgspec.MsgspecError:
        return ProbeFailure(_death(done.returncode, done.stderr))


def _death(code: int, stderr: bytes) -> str:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    last = f": {lines[-1].strip()}" if lines else ""
    if code < 0:
        return f"the process that opened it died of {signal.Signals(-code).name}{last}"
    return f"the process that opened it ended with code {code}{last}"


def _joined(runs: list[Run]) -> ColdStart:
    return ColdStart(
        processes=len(runs),
        load_ms=median(r.load_ms for r in runs),
        reload_ms=median(r.reload_ms for r in runs),
        first_inference_ms=median(r.first_inference_ms for r in runs),
        peak_rss_bytes=max(r.peak_rss_bytes for r in runs),
        bare_rss_bytes=max(r.bare_rss_bytes for r in runs),
        runtime_version=runs[0].runtime_version,
    )
