"""Taking the measurements that the configured limits need, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bench.coldstart import ColdStart, cold_starts
from edgeserve.bench.interleave import Timings
from edgeserve.bench.latency import single_stream
from edgeserve.bench.run import find_baseline
from edgeserve.bench.statistics import MIN_SAMPLES
from edgeserve.bench.subjects import (
    OpenSubject,
    Skipped,
    Subject,
    close_all,
    open_all,
    requests_of,
    select,
    source_subject,
)
from edgeserve.bundle import Bundle, Fidelity, Measured
from edgeserve.chain import golden_batches
from edgeserve.devices.names import device_kind
from edgeserve.errors import DeviceUnavailable, UsageError
from edgeserve.evaluate import fidelity
from edgeserve.gate.config import Config
from edgeserve.progress import Say
from edgeserve.runtimes import Placement

FIDELITY: Final = ("min_fidelity", "min_sqnr_db", "min_cosine")
LATENCY: Final = ("max_latency_p50", "max_latency_p99")


class Facts(msgspec.Struct, frozen=True):
    """What is known of the judged candidate. None: not asked for, or it could not be measured.

    `wrong` says why it does not reproduce the golden samples: then nothing else was measured of it.
    `recorded` is what convert measured of this variant on this runtime and device, `live` the
    fidelity on the golden samples here. `baseline` names what `baseline_timings` are of. `required` is
    the accelerator that was asked for, `instead` the candidate on another device that would serve, since it
    opens here and stands before it in the chain.
    """

    subject: Subject
    bundle_bytes: int
    golden_samples: int
    cold_start: ColdStart
    wrong: Skipped | None = None
    golden_error: float | None = None
    golden_tolerance: float = 0.0
    recorded: Measured | None = None
    live: Fidelity | None = None
    placement: Placement | None = None
    timings: Timings | None = None
    baseline: str | None = None
    baseline_timings: Timings | None = None
    failed: Skipped | None = None
    required: str | None = None
    instead: str | None = None


def measure(
    bundle: Bundle, config: Config, *, seconds: float, patience_s: float, threads: int, say: Say
) -> tuple[Facts, list[Skipped]]:
    """Measure the first candidate (on the configured device) that this machine opens; also return those
    before it. `patience_s` bounds the single-stream time of slow models.

    Raises BundleError, UsageError (no such candidate), DeviceUnavailable (none opens).
    """
    bundle.verify()
    processes = 3 if config.has("max_peak_rss") else 1
    skipped: list[Skipped] = []
    for subject in select(bundle, device=config.device):
        say(f"opening {subject.label}", None)
        cold, refused = cold_starts(bundle, [subject], threads=threads, processes=processes)
        opened: list[OpenSubject] = []
        if not refused:
            opened, refused = open_all(bundle, [subject], threads=threads)
        skipped += refused
        if not opened and refused[0].stage == "open":
            continue
        facts = _known(bundle, subject, cold[subject.key])
        if config.device is not None and device_kind(config.device) != "cpu":
            instead, others = _before(bundle, subject, config.device)
            skipped += others
            facts = msgspec.structs.replace(facts, required=config.device, instead=instead)
        if not opened:
            skipped.remove(refused[0])
            return msgspec.structs.replace(facts, wrong=refused[0]), skipped
        try:
            facts = msgspec.structs.replace(
                facts, golden_error=opened[0].golden_error, placement=opened[0].placement
            )
            if config.has(*FIDELITY):
                facts = msgspec.structs.replace(facts, live=_live(bundle, opened[0]))
            if config.has(*LATENCY, "min_speedup"):
                facts = _timed(bundle, config, facts, opened, seconds, patience_s, threads, say)
        finally:
            close_all(opened)
        return facts, skipped
    raise DeviceUnavailable(
        f"no candidate of '{bundle.name}' opens on this machine"
        + (f" on {config.device}" if config.device else ""),
        cause="; ".join(f"{s.label}: {s.reason}" for s in skipped),
        hint=next((s.hint for s in skipped if s.hint), None),
    )


def _before(bundle: Bundle, subject: Subject, device: str) -> tuple[str | None, list[Skipped]]:
    """The candidate on another device that would serve in the place of `subject`: the first before it
    that opens; and those that do not."""
    elsewhere = {s.index for s in select(bundle)} - {s.index for s in select(bundle, device=device)}
    skipped: list[Skipped] = []
    for other in select(bundle):
        if other.index > subject.index:
            break
        if other.index in elsewhere:
            cold, refused = cold_starts(bundle, [other], processes=1)
            skipped += refused
            if cold:
                return other.label, skipped
    return None, skipped


def _known(bundle: Bundle, subject: Subject, cold: ColdStart) -> Facts:
    """What needs no session."""
    candidate, variant = subject.candidate, bundle.manifest.variant(subject.candidate.variant)
    here = (candidate.runtime, candidate.device)
    return Facts(
        subject=subject,
        bundle_bytes=bundle.size_bytes,
        golden_samples=bundle.manifest.golden.samples,
        cold_start=cold,
        golden_tolerance=variant.golden_tolerance,
        recorded=next((m for m in variant.measured if (m.runtime, m.device) == here), None),
    )


def _live(bundle: Bundle, opened: OpenSubject) -> Fidelity:
    interface = bundle.manifest.interface
    requests = requests_of(bundle)
    wanted = golden_batches(interface, bundle.golden()[1])
    return fidelity(
        interface,
        bundle.manifest.outputs,
        requests,
        wanted,
        [opened.session.run(r) for r in requests],
    )


def _timed(
    bundle: Bundle,
    config: Config,
    facts: Facts,
    opened: list[OpenSubject],
    seconds: float,
    patience_s: float,
    threads: int,
    say: Say,
) -> Facts:
    """Add timings, beside the baseline's where a speed-up is asked for. Sessions go to `opened`."""
    mine, baseline = opened[0], None
    if config.has("min_speedup"):
        baseline = _open_baseline(bundle, config.against, opened, threads)
    rank = 99 if config.has("max_latency_p99") else 90
    timed, failed = single_stream(
        [mine] if baseline in (None, mine) else [mine, baseline],
        requests_of(bundle),
        seconds=seconds,
        samples=MIN_SAMPLES[rank],
        patience=max(1.0, patience_s / seconds),
        progress=lambda share: say(f"latency of {mine.subject.label}", share),
    )
    key = baseline.subject.key if baseline else ""
    return msgspec.structs.replace(
        facts,
        timings=timed.get(mine.subject.key),
        baseline=baseline.subject.label if baseline else None,
        baseline_timings=timed.get(key),
        failed=next((f for f in failed if f.label == mine.subject.label), None),
    )


def _open_baseline(
    bundle: Bundle, against: Path | None, opened: list[OpenSubject], threads: int
) -> OpenSubject | None:
    mine = opened[0].subject.index
    if against is not None:
        others = [source_subject(against)]
    else:
        others = [s for s in select(bundle) if s.precision == "fp32" and s.index != mine]
    # Not in a process of their own first: the fallback on the CPU is what fp32 candidates are.
    on_cpu = [s for s in others if s.candidate.device == "cpu"]
    more, skipped = open_all(bundle, on_cpu, threads=threads)
    opened += more
    if against is not None and skipped:
        reason, hint = skipped[0].reason, skipped[0].hint
        raise UsageError(f"no speed-up over {against} can be measured", cause=reason, hint=hint)
    return find_baseline(opened)
