"""The search for the best recipe: which variants are made, in which order, and when to stop.

Tier 1 of every entry of the chain is proven at once, in one interleaved run. Only where all of an entry's
quantized variants miss the quality bounds, tier 2 is tried, then the layers that spoil it are restored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.bundle import Measured, Variant
from edgeserve.conversion.bounds import quality_problem
from edgeserve.conversion.job import Job
from edgeserve.conversion.search.builder import Builder
from edgeserve.conversion.search.choose import VariantTrial, acceptable
from edgeserve.conversion.search.planning import (
    QUANTIZED,
    check_static,
    format_for,
    int4_plans,
    plans_of,
)
from edgeserve.conversion.search.prove import Proof, prove
from edgeserve.conversion.search.restore import Restoration, restore
from edgeserve.conversion.search.timing import Contender, Pace, race
from edgeserve.conversion.sources.reference import Reference
from edgeserve.errors import DataError, EdgeServeError, UnsupportedModel
from edgeserve.progress import Say
from edgeserve.quantize import StaticQuantizer, Tail, VariantPlan, check_names
from edgeserve.runtimes.guarded import in_words

SECONDS_PER_VARIANT: Final = 1.0
# Of targets with another CPU, whose choice does not depend on it.
SECONDS_ELSEWHERE: Final = 0.2
# What comes so close to the fastest is timed once more, for so long each.
CLOSE: Final = 1.15
SECONDS_PER_FINALIST: Final = 3.0
# Of calls that take less than a millisecond this gives enough.
SECONDS_PER_QUICK_FINALIST: Final = 0.3
_QUICK_MS: Final = 1.0
# SQNRs so close are the same.
_ALIKE_DB: Final = 0.5


class Found(msgspec.Struct):
    """What the search made and measured. `proof` is that of the first tier; `trials` are all, by `recipes`;
    `tails` were left in fp32 by static int8."""

    trials: list[VariantTrial]
    built: dict[str, Variant]
    proof: Proof
    restorations: tuple[Restoration, ...] = ()
    recipes: frozenset[str] = frozenset()
    tails: tuple[Tail, ...] = ()


class Search:
    """One search; `run` it once. Raises nothing for variants that fail: those become trials."""

    def __init__(self, job: Job, builder: Builder, reference: Reference, say: Say) -> None:
        check_names(job.options.recipes)
        self._job = job
        self._builder = builder
        self._target = job.target
        self._bounds = job.bounds
        self._reference = reference
        self._say = say
        self._began = time.monotonic()
        self._trials: dict[tuple[int, str], VariantTrial] = {}
        self._built: dict[str, Variant | EdgeServeError] = {}
        self._rounds = 0
        self._recipes: set[str] = set()

    def run(self) -> Found:
        """Raises DataError when the calibration data are wrong, and what `prove` raises."""
        entries = list(enumerate(self._target.chain))
        plans = {i: plans_of(self._job, e, self._builder.carried) for i, e in entries}
        proof = self._prove(
            self._contenders({i: [p for p in plans[i] if p.tier == 1] for i in plans})
        )
        second = {i: [p for p in plans[i] if p.tier == 2] for i in self._needy()}
        if any(second.values()) and self._has_time():
            self._prove(self._contenders(second))
        smaller = {i: int4_plans(self._job, self._target.chain[i]) for i in self._oversized()}
        if any(smaller.values()):
            self._prove(self._contenders(smaller))
        restorations = [self._restore(i, proof) for i in self._needy() if self._may_restore(i)]
        self._play_off()
        built = {n: v for n, v in self._built.items() if isinstance(v, Variant)}
        return Found(
            self._in_order(),
            built,
            proof,
            tuple(restorations),
            frozenset(self._recipes),
            self._builder.onnx.tails,
        )

    # what to try

    def _contenders(self, plans: dict[int, list[VariantPlan]]) -> list[Contender]:
        """Build what is planned; what cannot be built, or cannot win, becomes a trial with its problem."""
        self._reference.make_room()
        contenders: list[Contender] = []
        for index, mine in plans.items():
            entry = self._target.chain[index]
            for plan in mine:
                self._recipes.add(plan.recipe)
                try:
                    if plan.skip is not None:
                        raise UnsupportedModel(plan.skip)
                    check_static(self._job, entry)
                    variant = self._build(plan)
                    contenders.append(
                        Contender(index, entry, variant, self._builder.files(variant))
                    )
                except DataError:
                    raise  # the calibration data are wrong for every variant
                except EdgeServeError as error:
                    problem = str(error) + (f" ({error.hint})" if error.hint else "")
                    self._trials[index, plan.variant] = VariantTrial(
                        index, plan.variant, plan.precision, problem=problem
                    )
        return contenders

    def _build(self, plan: VariantPlan) -> Variant:
        if plan.variant not in self._built:
            try:
                self._built[plan.variant] = self._builder.build(plan)
            except DataError:
                raise
            except EdgeServeError as error:
                self._built[plan.variant] = error
            except OSError:
                raise  # a full disk is not the tool's fault
            except Exception as error:  # noqa: BLE001 - of a quantizer or converter: a row in the report
                self._built[plan.variant] = UnsupportedModel(
                    f"{plan.variant} could not be made", cause=in_words(error)
                )
        made = self._built[plan.variant]
        if isinstance(made, EdgeServeError):
            raise made
        return made

    # proof

    def _prove(self, contenders: Sequence[Contender]) -> Proof:
        """Prove contenders, those of a large model one by one. The first proof is returned: all tell the same of
        the source."""
        apart = self._reference.is_large and len(contenders) > 1
        groups = [[s] for s in contenders] if apart else [list(contenders)]
        proofs = [self._prove_together(group) for group in groups]
        return proofs[0]

    def _prove_together(self, contenders: Sequence[Contender]) -> Proof:
        """Prove contenders; an entry's fp32 variant comes along, to be compared with in the same run."""
        self._reference.wake()
        beside = [s for s in self._fp32_contenders(contenders) if s not in contenders]
        proof = prove(
            self._job,
            [*contenders, *beside],
            self._reference,
            seconds=SECONDS_PER_VARIANT if self._bounds.speed_counts else SECONDS_ELSEWHERE,
            say=self._say,
        )
        self._rounds += 1
        for trial in proof.trials[: len(contenders)]:
            self._trials[trial.entry, trial.variant] = trial
        return proof

    def _play_off(self) -> None:
        """Time once more, in one run, what was measured in different ones and could be chosen; else what
        came close to the fastest, whose order among each other that tells: the level stays that of
        the first run, which all others were measured in."""
        if not self._bounds.speed_counts:
            return
        fit = [t for t in self._trials.values() if t.measured and acceptable(t, self._bounds)]
        finalists = fit if self._rounds > 1 else self._close(fit)
        if len(finalists) < 2:
            return
        quick = min(t.measured.latency_ms for t in finalists if t.measured) < _QUICK_MS
        racers = [self.contender(t) for t in finalists]
        paces = []
        for group in [[r] for r in racers] if self._reference.is_large else [racers]:
            self._reference.wake()
            paces += race(
                group,
                self._reference,
                self._job.data.proof,
                seconds=SECONDS_PER_QUICK_FINALIST if quick else SECONDS_PER_FINALIST,
                threads=self._job.threads,
                say=self._say,
            )
        raced = [
            (t, m, p)
            for t, p in zip(finalists, paces, strict=True)
            if (m := t.measured) is not None and p is not None
        ]
        if self._rounds == 1 and raced:
            level = float(np.median([m.speedup / p.speedup for _, m, p in raced]))
            raced = [(t, m, _at_level(m, p.speedup * level)) for t, m, p in raced]
        for trial, found, pace in raced:
            measured = msgspec.structs.replace(
                found, latency_ms=pace.latency_ms, speedup=pace.speedup
            )
            key = trial.entry, trial.variant
            self._trials[key] = msgspec.structs.replace(trial, measured=measured)

    def _close(self, fit: list[VariantTrial]) -> list[VariantTrial]:
        """Those nearly as fast as the fastest of their device."""
        found = []
        for device in dict.fromkeys(e.device for e in self._target.chain):
            mine = [
                (t, t.measured)
                for t in fit
                if t.measured is not None and self._target.chain[t.entry].device == device
            ]
            best = max((m.speedup for _, m in mine), default=0.0)
            found += [t for t, m in mine if m.speedup * CLOSE >= best]
        return found

    def contender(self, trial: VariantTrial) -> Contender:
        variant = self._built[trial.variant]
        assert isinstance(variant, Variant)
        entry = self._target.chain[trial.entry]
        return Contender(trial.entry, entry, variant, self._builder.files(variant))

    def _fp32_contenders(self, contenders: Sequence[Contender]) -> list[Contender]:
        found = []
        for index in dict.fromkeys(s.entry for s in contenders):
            for variant in self._built.values():
                if isinstance(variant, Variant) and variant.precision == "fp32":
                    entry = self._target.chain[index]
                    if variant.format == format_for(self._target.chain[index]):
                        files = self._builder.files(variant)
                        found.append(Contender(index, entry, variant, files))
        return found

    def _needy(self) -> list[int]:
        """Entries where quantized variants were measured and all of them miss a bound of quality."""
        needy = []
        for index in range(len(self._target.chain)):
            mine = [
                t for t in self._trials.values() if t.entry == index and t.precision in QUANTIZED
            ]
            poor = [t for t in mine if t.measured is not None and self._is_poor(t)]
            if poor and not any(t.measured and acceptable(t, self._bounds) for t in mine):
                needy.append(index)
        return needy

    def _oversized(self) -> list[int]:
        """Entries of which everything that was measured is larger than allowed."""
        limit = self._bounds.max_size
        sizes: dict[int, list[int]] = {}
        for trial in self._trials.values():
            if trial.measured is not None and trial.size_bytes is not None:
                sizes.setdefault(trial.entry, []).append(trial.size_bytes)
        return [i for i, found in sizes.items() if limit is not None and min(found) > limit]

    def _is_poor(self, trial: VariantTrial) -> bool:
        found = trial.measured
        return found is not None and bool(
            quality_problem(found.fidelity, found.accuracy, trial.precision, self._bounds)
        )

    # repair

    def _may_restore(self, index: int) -> bool:
        only = self._job.options.recipes
        return (
            self._job.model.format == "onnx"
            and self._job.model.precision == "fp32"
            and format_for(self._target.chain[index]) in ("onnx", "openvino-ir")
            and self._job.data.calibration is not None
            and (not only or "static-restored" in only)
            and self._has_time()
        )

    def _restore(self, index: int, proof: Proof) -> Restoration:
        """Find layers to restore for an entry, on its own runtime, and prove the result there."""
        base = self._better_base()
        self._reference.make_room()
        done = restore(
            self._job,
            self._builder,
            base,
            self._target.chain[index],
            proof.wanted,
            deadline=self._began + self._job.options.max_time,
            say=self._say,
        )
        if done.met and done.nodes:
            plan = VariantPlan(format_for(self._target.chain[index]), "int8", "static-restored")
            self._prove(self._contenders({index: [plan]}))
        if base is not self._builder.onnx.static:
            done = msgspec.structs.replace(done, base="equalized int8")
        return done

    def _better_base(self) -> StaticQuantizer:
        """What to restore layers of: the equalized model unless the plain one came closer to the source. Where
        both are as bad, something else is at fault, and uneven channels may be as well."""
        found = {
            t.variant.partition("-")[2]: t.measured.fidelity.sqnr_db
            for t in self._trials.values()
            if t.measured is not None
        }
        static = self._builder.onnx.static
        equalized = found.get("int8-static-equalized")
        better = equalized is not None and equalized + _ALIKE_DB > found.get("int8", -200.0)
        return static.equalized if better and static.equalized is not None else static

    def _has_time(self) -> bool:
        return time.monotonic() - self._began < self._job.options.max_time

    def _in_order(self) -> list[VariantTrial]:
        """By entry, then by the target's order of precisions, then as tried."""

        def place(trial: VariantTrial) -> tuple[int, int]:
            precisions: tuple[Any, ...] = self._target.chain[trial.entry].precisions
            known = trial.precision in precisions
            return trial.entry, precisions.index(trial.precision) if known else -1

        return sorted(self._trials.values(), key=place)


def _at_level(measured: Measured, speedup: float) -> Pace:
    """The pace of a variant `speedup` times as fast as the source, in the run that `measured` comes from."""
    return Pace(measured.latency_ms * measured.speedup / speedup, speedup)
