"""Which variant serves each entry of the target's chain: a pure decision over what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from edgeserve.bundle import Accuracy, Fidelity, Measured, Precision

# Precisions that promise the source's numbers must keep this SQNR, or the conversion is broken.
MIN_SQNR_DB = {"fp32": 40.0, "fp16": 30.0, "bf16": 20.0}
DEFAULT_MIN_AGREEMENT = 0.95
DEFAULT_MIN_COSINE = 0.99
# Within these factors variants count as equally fast, and equally small.
AS_FAST = 1.03
AS_SMALL = 1.25
# So much faster must an optional runtime be than those that the target needs anyway.
WORTH_IT = 1.05


class Elsewhere(msgspec.Struct, frozen=True):
    """What a variant gave on another device, `where`, than the one that it is for, which is not here."""

    where: str
    fidelity: Fidelity
    accuracy: Accuracy | None = None


class Trial(msgspec.Struct, frozen=True):
    """One variant for one entry of the chain, and what came of trying it.

    `problem` is set when it could not be built, does not run, or was not tried because it cannot win;
    `unverified` when this machine lacks the device: then `elsewhere` says what the file gave on the CPU. `speedup_high` is the upper end of the confidence
    interval of the speed-up over fp32 on the same runtime, or over the source where that was not tried.
    """

    entry: int
    variant: str
    precision: Precision
    size_bytes: int | None = None
    measured: Measured | None = None
    speedup_high: float | None = None
    problem: str | None = None
    unverified: str | None = None
    elsewhere: Elsewhere | None = None

    @property
    def loaded(self) -> bool:
        """Whether some runtime opened the file and ran it."""
        return self.measured is not None or self.elsewhere is not None


class Bounds(msgspec.Struct, frozen=True):
    """What a variant may cost in quality. `max_drop` is in percentage points of accuracy and counts
    with labelled data; `min_fidelity` is a top-1 agreement (or cosine, for models without class
    scores) and counts without. `max_size` is in bytes, `max_latency` in ms of one call. `speed_counts`
    is False when the target's CPU is not this one."""

    max_drop: float = 1.0
    min_fidelity: float | None = None
    max_size: int | None = None
    max_latency: float | None = None
    speed_counts: bool = True


class Verdict(msgspec.Struct, frozen=True):
    """`chosen` serves its entry; else `reason` says why not. A `failed` one broke a promise (quality,
    speed), as opposed to having been beaten by a better one."""

    trial: Trial
    chosen: bool
    reason: str
    failed: bool = False


def quality_problem(
    fidelity: Fidelity, accuracy: Accuracy | None, precision: Precision, bounds: Bounds
) -> str | None:
    """Why this variant is too far from the source, or None."""
    floor = MIN_SQNR_DB.get(precision)
    if floor is not None and fidelity.sqnr_db < floor:
        return f"its numbers are not the source's: SQNR {fidelity.sqnr_db:.1f} dB, {precision} keeps {floor:.0f}"
    if accuracy is not None:
        drop = accuracy.drop_points
        # Shares of samples are exact multiples of 1/n: allow for rounding at the limit itself.
        if drop > bounds.max_drop + 1e-9:
            return f"accuracy drops {drop:.2f} points, --max-drop is {bounds.max_drop:g}"
        return None
    if fidelity.top1_agreement is not None:
        wanted = bounds.min_fidelity if bounds.min_fidelity is not None else DEFAULT_MIN_AGREEMENT
        if fidelity.top1_agreement < wanted:
            return (
                f"top-1 agrees with the source on {100 * fidelity.top1_agreement:.1f} % of samples, "
                f"--min-fidelity is {100 * wanted:g} %"
            )
        return None
    wanted = bounds.min_fidelity if bounds.min_fidelity is not None else DEFAULT_MIN_COSINE
    if fidelity.cosine < wanted:
        return f"cosine to the source is {fidelity.cosine:.4f}, --min-fidelity is {wanted:g}"
    return None


def choose(
    trials: Sequence[Trial],
    bounds: Bounds,
    *,
    asked: Precision | None = None,
    optional: Mapping[int, Collection[int]] | None = None,
) -> list[Verdict]:
    """One verdict per trial. Trials of an entry come in the order of preference.

    The fastest acceptable trial of an entry wins, or the first where nothing could be measured; with an
    `asked` precision, one of that precision wins over others. The winner of an `optional` entry is
    chosen only if it is clearly faster than those of its rivals: the entries it maps to.
    """
    verdicts: list[Verdict] = []
    poor = _poor_files(trials, bounds)
    for entry in dict.fromkeys(t.entry for t in trials):
        mine = [t for t in trials if t.entry == entry]
        fit: list[Trial] = []
        for trial in mine:
            reason, failed = _rejection(trial, bounds)
            if reason is None and trial.measured is None and trial.variant in poor:
                reason, failed = f"elsewhere {poor[trial.variant]}", True
            if reason is None:
                fit.append(trial)
            else:
                verdicts.append(Verdict(trial, chosen=False, reason=reason, failed=failed))
        if not fit:
            continue
        as_asked = [t for t in fit if t.precision == asked]
        winner = _fastest(as_asked or fit, bounds)
        for trial in fit:
            if trial is winner:
                verdicts.append(Verdict(trial, chosen=True, reason=_chosen(trial)))
            else:
                verdicts.append(Verdict(trial, chosen=False, reason=_beaten(trial, winner)))
    for entry, rivals in (optional or {}).items():
        verdicts = _without_weak_option(verdicts, entry, rivals)
    order = {id(t): i for i, t in enumerate(trials)}
    return sorted(verdicts, key=lambda v: order[id(v.trial)])


def _chosen(trial: Trial) -> str:
    if trial.unverified is None:
        return "chosen"
    other = trial.elsewhere
    told = (
        f"its file runs on {other.where} with an SQNR of {other.fidelity.sqnr_db:.1f} dB"
        if other is not None
        else "nothing here loads its file: it comes last in the chain"
    )
    return f"not verified here: {trial.unverified}; {told}"


def _without_weak_option(
    verdicts: list[Verdict], entry: int, rivals: Collection[int]
) -> list[Verdict]:
    """The verdicts; of an optional entry nothing is chosen unless that is worth a runtime more."""
    best = max(
        (v.trial for v in verdicts if v.chosen and v.trial.entry in rivals),
        key=_speedup,
        default=None,
    )
    if best is None:
        return verdicts
    return [
        msgspec.structs.replace(v, chosen=False, reason=_not_worth_it(v.trial, best))
        if v.chosen and v.trial.entry == entry and _speedup(v.trial) < WORTH_IT * _speedup(best)
        else v
        for v in verdicts
    ]


def _speedup(trial: Trial) -> float:
    return trial.measured.speedup if trial.measured is not None else 0.0


def _not_worth_it(trial: Trial, best: Trial) -> str:
    ratio = _speedup(trial) / _speedup(best) if _speedup(best) else 0.0
    return f"not worth another runtime: {ratio:.2f}x as fast as {best.variant}"


def _poor_files(trials: Sequence[Trial], bounds: Bounds) -> dict[str, str]:
    """Variants that were measured somewhere and are too far from the source everywhere there."""
    problems: dict[str, list[str | None]] = {}
    for trial in trials:
        if trial.measured is not None:
            found = trial.measured
            problem = quality_problem(found.fidelity, found.accuracy, trial.precision, bounds)
            problems.setdefault(trial.variant, []).append(problem)
    return {v: found[0] for v, found in problems.items() if found[0] and all(found)}


def acceptable(trial: Trial, bounds: Bounds) -> bool:
    """Whether the trial could be chosen."""
    return _rejection(trial, bounds)[0] is None


def _rejection(trial: Trial, bounds: Bounds) -> tuple[str | None, bool]:
    if trial.problem is not None:
        return trial.problem, False
    if bounds.max_size is not None and (trial.size_bytes or 0) > bounds.max_size:
        return f"{trial.size_bytes} bytes are more than --max-size {bounds.max_size}", False
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
    if slower and trial.precision != "fp32":
        return f"slower than fp32 on the same runtime (at most {trial.speedup_high:.2f}x)", True
    if bounds.max_latency is not None and measured.latency_ms > bounds.max_latency:
        return f"takes {measured.latency_ms:.3f} ms, --max-latency is {bounds.max_latency:g}", False
    return None, False


def _fastest(fit: list[Trial], bounds: Bounds) -> Trial:
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


def _beaten(trial: Trial, winner: Trial) -> str:
    if trial.measured is None or winner.measured is None:
        return f"{winner.variant} is preferred"
    ratio = _speedup(winner) / _speedup(trial)
    if ratio > AS_FAST:
        return f"{winner.variant} is {ratio:.2f}x faster"
    if ratio * AS_FAST < 1.0:
        return f"{winner.variant} is preferred"
    if (trial.size_bytes or 0) > AS_SMALL * (winner.size_bytes or 0):
        return f"{winner.variant} is as fast and smaller"
    return f"{winner.variant} is as fast and closer to the source"
