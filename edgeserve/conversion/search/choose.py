"""Which variant serves each entry of the target's chain: a pure decision over what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from edgeserve.bundle import (
    Accuracy,
    Candidate,
    Fidelity,
    Measured,
    OutputTolerance,
    Precision,
)
from edgeserve.conversion.bounds import Bounds, quality_problem
from edgeserve.devices import machine
from edgeserve.runtimes.detect import cpu_problem
from edgeserve.targets.schema import Target

# Within these factors variants count as equally fast, and equally small.
AS_FAST = 1.03
AS_SMALL = 1.25
# What the speed of a variant is held against.
BESIDE_FP32: Final = "fp32 on the same runtime"
BESIDE_SOURCE: Final = "the source"
# So much faster must an optional runtime be than those that the target needs anyway.
WORTH_IT = 1.05


class Elsewhere(msgspec.Struct, frozen=True):
    """What a variant gave on another device, `where`, than the one that it is for, which is not here."""

    where: str
    fidelity: Fidelity
    accuracy: Accuracy | None = None


class VariantTrial(msgspec.Struct, frozen=True):
    """One variant for one entry of the chain, and what came of trying it.

    `problem` is set when it could not be built, does not run, or was not tried because it cannot win;
    `unverified` when this machine lacks the device: then `elsewhere` says what the file gave on the CPU. `speedup_high` is the upper end of the confidence
    interval of the speed-up over fp32 on the same runtime, or over the source where that gave nothing:
    `beside` says which.
    `golden` is what its outputs differ by on the golden samples, as a tolerance without any margin.
    """

    entry: int
    variant: str
    precision: Precision
    size_bytes: int | None = None
    measured: Measured | None = None
    speedup_high: float | None = None
    beside: str = BESIDE_FP32
    problem: str | None = None
    unverified: str | None = None
    elsewhere: Elsewhere | None = None
    golden: tuple[OutputTolerance, ...] = ()

    @property
    def loaded(self) -> bool:
        """Whether some runtime opened the file and ran it."""
        return self.measured is not None or self.elsewhere is not None


class Decision(msgspec.Struct, frozen=True):
    """`chosen` serves its entry; else `reason` says why not. A `failed` one broke a promise (quality,
    speed), as opposed to having been beaten by a better one."""

    trial: VariantTrial
    chosen: bool
    reason: str
    failed: bool = False


def choose(
    trials: Sequence[VariantTrial],
    bounds: Bounds,
    *,
    asked: Precision | None = None,
    optional: Mapping[int, Collection[int]] | None = None,
) -> list[Decision]:
    """One decision per trial. Trials of an entry come in the order of preference.

    The fastest acceptable trial of an entry wins, or the first where nothing could be measured; with an
    `asked` precision, one of that precision wins over others. The winner of an `optional` entry is
    chosen only if it is clearly faster than those of its rivals: the entries it maps to.
    """
    decisions: list[Decision] = []
    poor = _poor_files(trials, bounds)
    for entry in dict.fromkeys(t.entry for t in trials):
        mine = [t for t in trials if t.entry == entry]
        fit: list[VariantTrial] = []
        for trial in mine:
            reason, failed = _rejection(trial, bounds)
            if reason is None and trial.measured is None and trial.variant in poor:
                reason, failed = f"elsewhere {poor[trial.variant]}", True
            if reason is None:
                fit.append(trial)
            else:
                decisions.append(Decision(trial, chosen=False, reason=reason, failed=failed))
        if not fit:
            continue
        as_asked = [t for t in fit if t.precision == asked]
        winner = _fastest(as_asked or fit, bounds)
        for trial in fit:
            if trial is winner:
                decisions.append(Decision(trial, chosen=True, reason=_chosen(trial)))
            else:
                decisions.append(Decision(trial, chosen=False, reason=_beaten(trial, winner)))
    for entry, rivals in (optional or {}).items():
        decisions = _without_weak_option(decisions, entry, rivals)
    order = {id(t): i for i, t in enumerate(trials)}
    return sorted(decisions, key=lambda v: order[id(v.trial)])


def _chosen(trial: VariantTrial) -> str:
    if trial.unverified is None:
        return "chosen"
    other = trial.elsewhere
    elsewhere = (
        f"its file runs on {other.where} with an SQNR of {other.fidelity.sqnr_db:.1f} dB"
        if other is not None
        else "no runtime here loads its file, so it comes last in the chain"
    )
    return f"not verified here: {trial.unverified}; {elsewhere}"


def without_worse_than_source(
    decisions: list[Decision], source_bytes: int, devices: Mapping[int, str]
) -> list[Decision]:
    """The decisions on variants of a quantized source; what is larger and slower than the source itself is not
    chosen where another serves the same device. `devices` are those of the entries."""
    worse = {
        id(v): v.trial.measured.speedup
        for v in decisions
        if v.chosen
        and v.trial.measured is not None
        and (v.trial.size_bytes or 0) > AS_FAST * source_bytes
        and AS_FAST * v.trial.measured.speedup < 1.0
    }
    served = {devices[v.trial.entry] for v in decisions if v.chosen and id(v) not in worse}
    return [
        msgspec.structs.replace(
            v,
            chosen=False,
            reason=f"larger and slower than the source: {v.trial.size_bytes} bytes against "
            f"{source_bytes}, {worse[id(v)]:.2f}x its speed",
        )
        if id(v) in worse and devices[v.trial.entry] in served
        else v
        for v in decisions
    ]


def _without_weak_option(
    decisions: list[Decision], entry: int, rivals: Collection[int]
) -> list[Decision]:
    """The decisions; of an optional entry nothing is chosen unless that is worth a runtime more."""
    best = max(
        (v.trial for v in decisions if v.chosen and v.trial.entry in rivals),
        key=_speedup,
        default=None,
    )
    if best is None:
        return decisions
    return [
        msgspec.structs.replace(v, chosen=False, reason=_not_worth_it(v.trial, best))
        if v.chosen and v.trial.entry == entry and _speedup(v.trial) < WORTH_IT * _speedup(best)
        else v
        for v in decisions
    ]


def _speedup(trial: VariantTrial) -> float:
    return trial.measured.speedup if trial.measured is not None else 0.0


def _not_worth_it(trial: VariantTrial, best: VariantTrial) -> str:
    ratio = _speedup(trial) / _speedup(best) if _speedup(best) else 0.0
    return f"not worth another runtime: {ratio:.2f}x as fast as {best.variant}"


def _poor_files(trials: Sequence[VariantTrial], bounds: Bounds) -> dict[str, str]:
    """Variants that were measured somewhere and are too far from the source everywhere there."""
    problems: dict[str, list[str | None]] = {}
    for trial in trials:
        if trial.measured is not None:
            found = trial.measured
            problem = quality_problem(found.fidelity, found.accuracy, trial.precision, bounds)
            problems.setdefault(trial.variant, []).append(problem)
    return {v: found[0] for v, found in problems.items() if found[0] and all(found)}


def acceptable(trial: VariantTrial, bounds: Bounds) -> bool:
    """Whether the trial could be chosen."""
    return _rejection(trial, bounds)[0] is None


def _rejection(trial: VariantTrial, bounds: Bounds) -> tuple[str | None, bool]:
    if trial.problem is not None:
        return trial.problem, False
    if bounds.max_size is not None and (trial.size_bytes or 0) > bounds.max_size:
        return f"its {trial.size_bytes} bytes exceed --max-size {bounds.max_size}", False
    measured = trial.measured
    if measured is None:
        other = trial.elsewhere
        if other is None:
            return None, False
        problem = quality_problem(other.fidelity, other.accuracy, trial.precision, bounds)
        return (f"on {other.where}, {problem}", True) if problem else (None, False)
    problem = quality_problem(measured.fidelity, measured.accuracy, trial.precision, bounds)
    if problem is not None:
        return problem, True
    if not bounds.speed_counts:
        return None, False
    slower = trial.speedup_high is not None and trial.speedup_high < 1.0
    if slower and trial.precision not in ("fp32", bounds.source):
        return f"slower than {trial.beside} ({trial.speedup_high:.2f}x at best)", True
    if bounds.max_latency is not None and measured.latency_ms > bounds.max_latency:
        return f"takes {measured.latency_ms:.3f} ms, --max-latency is {bounds.max_latency:g}", False
    return None, False


def _fastest(fit: list[VariantTrial], bounds: Bounds) -> VariantTrial:
    """The fastest by speed-up over the source, which compares trials of different rounds, too.

    Of those that are as fast, give or take noise, the smallest, and of those as small the closest to the
    source.
    """
    timed = [t for t in fit if t.measured is not None]
    if not bounds.speed_counts or not timed:
        return fit[0]
    best = max(map(_speedup, timed))
    fast = [t for t in timed if AS_FAST * _speedup(t) >= best]
    least = min(t.size_bytes or 0 for t in fast)
    small = [t for t in fast if (t.size_bytes or 0) <= AS_SMALL * least]
    return max(small, key=lambda t: t.measured.fidelity.sqnr_db if t.measured else 0.0)


def _beaten(trial: VariantTrial, winner: VariantTrial) -> str:
    if trial.measured is None or winner.measured is None:
        return f"{winner.variant} is preferred"
    ratio = _speedup(winner) / _speedup(trial)
    if ratio > AS_FAST:
        return f"{winner.variant} is {ratio:.2f}x faster"
    if ratio * AS_FAST < 1.0:
        return f"{winner.variant} is preferred"
    if (trial.size_bytes or 0) > AS_SMALL * (winner.size_bytes or 0):
        return f"{winner.variant} is as fast and smaller"
    if winner.measured.fidelity.sqnr_db > trial.measured.fidelity.sqnr_db:
        return f"{winner.variant} is as fast and closer to the source"
    return f"{winner.variant} is preferred"


def ordered_chain(decisions: list[Decision], target: Target) -> tuple[Candidate, ...]:
    """The chosen trials as candidates: the target's order of devices, and among candidates on the
    same device the fastest measured one first; those as fast as that in the target's order. Files that nothing
    here could load come last."""
    chosen = [v.trial for v in decisions if v.chosen]
    devices = list(dict.fromkeys(target.chain[t.entry].device for t in chosen))

    def speed(trial: VariantTrial) -> float:
        return trial.measured.speedup if trial.measured and is_here(target) else 0.0

    best: dict[str, float] = {}
    for trial in chosen:
        device = target.chain[trial.entry].device
        best[device] = max(best.get(device, 0.0), speed(trial))

    def place(trial: VariantTrial) -> tuple[bool, int, float, int]:
        device = target.chain[trial.entry].device
        as_fast = AS_FAST * speed(trial) >= best[device]
        speedup = best[device] if as_fast else speed(trial)
        return not trial.loaded, devices.index(device), -speedup, trial.entry

    return tuple(
        Candidate(
            variant=t.variant,
            runtime=target.chain[t.entry].runtime,
            device=target.chain[t.entry].device,
            static_shapes=target.chain[t.entry].static_shapes,
            options=target.chain[t.entry].options,
        )
        for t in sorted(chosen, key=place)
    )


def is_here(target: Target) -> bool:
    """Whether what is measured on this CPU says anything about the target's."""
    return target.runs_on(machine().arch) and cpu_problem(target, machine()) is None


def optional_entries(target: Target) -> dict[int, tuple[int, ...]]:
    """The chain's optional entries by index, each with those of the same device that it must outdo."""
    chain = list(enumerate(target.chain))
    return {
        i: tuple(j for j, other in chain if not other.optional and other.device == entry.device)
        for i, entry in chain
        if entry.optional
    }
