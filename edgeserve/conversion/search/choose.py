"""Which variant serves each entry of the target's chain: a pure decision over what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from edgeserve.bundle import (
    Accuracy,
    Fidelity,
    Measured,
    OutputFidelity,
    OutputTolerance,
    Precision,
)
from edgeserve.bundle.fidelity import Kind

# Precisions that promise the source's numbers must keep so much of their size, or the conversion is broken.
MIN_SIGNAL_DB = {"fp32": 40.0, "fp16": 30.0, "bf16": 20.0}
# A tenth of the variance may be error (an R2 of 0.9); of class scores, whose order counts, half.
DEFAULT_MIN_SQNR_DB = 10.0
DEFAULT_MIN_SCORES_SQNR_DB = 3.0
DEFAULT_MIN_AGREEMENT = 0.95
DEFAULT_MIN_COSINE = 0.99
# Of the answers that are not the most common one.
MIN_OVERLAP = 0.7
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


class Trial(msgspec.Struct, frozen=True):
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


class Bounds(msgspec.Struct, frozen=True):
    """What a variant may cost in quality. `max_drop` is in percentage points of accuracy and counts
    with labelled data. `min_fidelity` is a share of equal answers (top-1, ids, texts), or a cosine where
    an output has no answers; `min_sqnr` is in dB, for all outputs, or `sqnr_of` one by name. `max_size`
    is in bytes, `max_latency` in ms of one call. `speed_counts` is False when the target's CPU is not
    this one. `source` is the precision of the source: variants of a quantized one have its bar, whatever
    they are called."""

    max_drop: float = 1.0
    min_fidelity: float | None = None
    max_size: int | None = None
    max_latency: float | None = None
    speed_counts: bool = True
    source: Precision = "fp32"
    min_sqnr: float | None = None
    sqnr_of: Mapping[str, float] = {}

    def asked_sqnr(self, output: str) -> float | None:
        return self.sqnr_of.get(output, self.min_sqnr)

    def sqnr(self, output: str, kind: Kind) -> float | None:
        """The least SQNR in dB of an output; None where nothing is asked for: `min_fidelity` 0 says so."""
        asked = self.asked_sqnr(output)
        if asked is not None:
            return asked
        if self.min_fidelity == 0.0:
            return None
        return DEFAULT_MIN_SCORES_SQNR_DB if kind == "scores" else DEFAULT_MIN_SQNR_DB


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
    """Why this variant is too far from the source, or None. Each output is judged by its kind, and the
    first that misses a bound decides, the worst one first."""
    if bounds.source in ("int8", "int4"):
        precision = bounds.source  # its own numbers are no closer to the truth than that
    if accuracy is not None:
        drop = accuracy.drop_points
        # Shares of samples are exact multiples of 1/n: allow for rounding at the limit itself.
        if drop > bounds.max_drop + 1e-9:
            return f"accuracy drops {drop:.2f} points, --max-drop is {bounds.max_drop:g}"
    labelled = accuracy.output if accuracy is not None else None
    for output in sorted(fidelity.outputs, key=lambda o: o.sqnr_db if o.sqnr_db is not None else 0):
        problem = _broken(output, precision) or _shapes(output, fidelity.samples, bounds)
        if problem is None and output.name == labelled:
            asked = bounds.asked_sqnr(output.name)  # accuracy decides, unless more was asked for
            problem = None if asked is None else _noise(output, asked)
        elif problem is None:
            problem = _answers(output, bounds) or _noise(
                output, bounds.sqnr(output.name, output.kind)
            )
        if problem is not None:
            return problem
    return None


def _broken(output: OutputFidelity, precision: Precision) -> str | None:
    floor = MIN_SIGNAL_DB.get(precision)
    if floor is None or output.signal_db is None or output.signal_db >= floor:
        return None
    return (
        f"its numbers are not the source's: output '{output.name}' keeps {output.signal_db:.1f} dB of its "
        f"signal, {precision} keeps {floor:.0f}"
    )


def _shapes(output: OutputFidelity, samples: int, bounds: Bounds) -> str | None:
    wanted = DEFAULT_MIN_AGREEMENT if bounds.min_fidelity is None else bounds.min_fidelity
    if output.mismatched <= (1.0 - wanted) * samples + 1e-9:
        return None
    return (
        f"output '{output.name}' has another shape than the source's on {output.mismatched} of "
        f"{samples} samples"
    )


_ANSWERS: Final = {
    "scores": "top-1 agrees with the source",
    "probabilities": "its decisions at 0.5 agree with the source",
    "ids": "it equals the source",
    "text": "it equals the source",
}


def _answers(output: OutputFidelity, bounds: Bounds) -> str | None:
    """Why too few answers of an output are the source's, or its direction is another. Of numbers, neither
    says anything: their cosine counts only where it was asked for."""
    asked = bounds.min_fidelity
    if output.kind in _ANSWERS:
        wanted = DEFAULT_MIN_AGREEMENT if asked is None else asked
        if output.agreement is not None and output.agreement < wanted:
            return (
                f"output '{output.name}': {_ANSWERS[output.kind]} on {100 * output.agreement:.1f} % of "
                f"samples, --min-fidelity is {100 * wanted:g} %"
            )
        least = min(MIN_OVERLAP, wanted)
        if output.overlap is not None and output.overlap < least:
            return (
                f"output '{output.name}': of the answers that are not the most common one, "
                f"{100 * output.overlap:.1f} % are the source's, at least {100 * least:g} % must be"
            )
        return None
    wanted = DEFAULT_MIN_COSINE if asked is None and output.kind == "embedding" else asked or 0.0
    if output.cosine is not None and output.cosine < wanted:
        return (
            f"output '{output.name}': cosine to the source is {output.cosine:.6g}, --min-fidelity is "
            f"{wanted:g}"
        )
    return None


def _noise(output: OutputFidelity, wanted: float | None) -> str | None:
    if wanted is None or output.sqnr_db is None or output.sqnr_db >= wanted:
        return None
    beside = (
        "spread over samples" if output.centred else "size (too few samples to know its spread)"
    )
    return (
        f"output '{output.worst}': SQNR {output.sqnr_db:.1f} dB against its {beside}, --min-sqnr is "
        f"{wanted:g} dB"
    )


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


def without_worse_than_source(
    verdicts: list[Verdict], source_bytes: int, devices: Mapping[int, str]
) -> list[Verdict]:
    """The verdicts on variants of a quantized source; what is larger and slower than the source itself is not
    chosen where another serves the same device. `devices` are those of the entries."""
    worse = {
        id(v): v.trial.measured.speedup
        for v in verdicts
        if v.chosen
        and v.trial.measured is not None
        and (v.trial.size_bytes or 0) > AS_FAST * source_bytes
        and AS_FAST * v.trial.measured.speedup < 1.0
    }
    served = {devices[v.trial.entry] for v in verdicts if v.chosen and id(v) not in worse}
    return [
        msgspec.structs.replace(
            v,
            chosen=False,
            reason=f"larger and slower than the source: {v.trial.size_bytes} bytes against "
            f"{source_bytes}, {worse[id(v)]:.2f}x its speed",
        )
        if id(v) in worse and devices[v.trial.entry] in served
        else v
        for v in verdicts
    ]


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
    if slower and trial.precision not in ("fp32", bounds.source):
        return f"slower than {trial.beside} (at most {trial.speedup_high:.2f}x)", True
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
    if winner.measured.fidelity.sqnr_db > trial.measured.fidelity.sqnr_db:
        return f"{winner.variant} is as fast and closer to the source"
    return f"{winner.variant} is preferred"
