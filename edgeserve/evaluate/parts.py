"""Which parts of an output have a scale of their own, and how large an error is beside that scale.

A detector's boxes run to 640 where its scores stay below 1, often in one tensor: judged together, the scores
could all be lost. So slices along an axis are measured by themselves where their scales differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle import Part, PartFidelity
from edgeserve.bundle.fidelity import spans_of
from edgeserve.tensors import Array

# From so many values of each element on, their spread says something; below, their size stands in.
MIN_ROWS: Final = 8
# Up to so many slices of an axis are quantities with a name. More are features, of which only groups count.
NAMED: Final = 64
# Slices are of like scale, and judged together, within this ratio of their spreads;
DIFFERENT: Final = 4.0
# features are, up to where the next spread is so many times as large.
GAP: Final = 8.0
# One quantity of several that are judged together may be so much worse than they: an R2 of 0.6, not 0.9.
SLICE_SLACK_DB: Final = 6.0
# Numbers from 0 to 1 are shares. Where they hardly move in the samples (a class that never occurs), their
# spread says nothing, and an error is seen beside at least so much. Where they do, the spread counts however
# small it is: a detector's scores are nearly 0 at nearly all places, and the few others are what is found.
SHARE_SPREAD: Final = 0.02
SHARE_MOVES: Final = 0.1
# What varies by less than fp32 can tell from its value is a constant; an error is seen beside a tenth of it.
CONSTANT: Final = 1e-5
CONSTANT_SPREAD: Final = 0.1
# JSON has no infinity: identical outputs read 200 dB, more than fp32 can express; garbage -200.
BEST_DB: Final = 200.0


class Elements(msgspec.Struct, frozen=True):
    """Sums over samples for each element of an output: `count` of finite values, `centred` and `power`
    of the reference's squares around their mean and around 0, `noise` of the squared errors, `low` and
    `high` ends of the reference. `moved` is the axis of the output that is this arrays' last, where
    other axes were summed up."""

    count: Array
    centred: Array
    power: Array
    noise: Array
    low: Array
    high: Array
    is_centred: bool
    moved: int | None = None


def elements(want: Sequence[Array], got: Sequence[Array]) -> Elements:
    """Sum up pairs of like shape. Where samples are few or differ in shape, positions count as samples,
    and the slices of one axis are the elements. Values that are not finite in the reference do not count."""
    alike = len({w.shape for w in want}) == 1
    folds: Sequence[int] | None = None
    moved = None
    if not (alike and len(want) >= MIN_ROWS) and want[0].ndim > 1:
        moved = _columns(want)
        folds = [a for a in range(want[0].ndim) if a != want[0].ndim + moved]
    elif not alike:
        folds = [0]

    def fold(values: Array, how: np.ufunc) -> Array:
        if folds is None:
            return values
        return np.asarray(how.reduce(values, axis=tuple(folds)))

    finite = [np.isfinite(w) for w in want]
    count: Array = np.sum([fold(f.astype(np.float64), np.add) for f in finite], axis=0)
    wide = [np.where(f, w, 0.0).astype(np.float64) for w, f in zip(want, finite, strict=True)]
    mean = np.sum([fold(w, np.add) for w in wide], axis=0) / np.maximum(count, 1.0)
    centre = mean
    if moved is not None:
        shape = [1] * want[0].ndim
        shape[moved] = -1
        centre = mean.reshape(shape)
    centred: Array = np.zeros(np.shape(count))
    power, noise = centred.copy(), centred.copy()
    low, high = np.full(np.shape(count), np.inf), np.full(np.shape(count), -np.inf)
    for w, g, f in zip(wide, got, finite, strict=True):
        centred += fold(np.where(f, (w - centre) ** 2, 0.0), np.add)
        power += fold(w**2, np.add)
        noise += fold(np.where(f, (w - np.where(f, g, 0.0)) ** 2, 0.0), np.add)
        low = np.minimum(low, fold(np.where(f, w, np.inf), np.minimum))
        high = np.maximum(high, fold(np.where(f, w, -np.inf), np.maximum))
    known = bool(np.max(count, initial=0.0) >= MIN_ROWS)
    return Elements(count, centred, power, noise, low, high, known, moved)


def _columns(arrays: Sequence[Array]) -> int:
    """The axis, counted from the end, whose slices are columns: the shorter of the second and the last, of
    those that are alike in all samples."""
    rank = arrays[0].ndim
    inner = {1 - rank, -1} if rank > 2 else {-1}
    fixed = [a for a in inner if len({x.shape[a] for x in arrays}) == 1]
    return min(fixed, key=lambda a: (arrays[0].shape[a], -a), default=-1)


def split(found: Elements) -> list[Part]:
    """The parts of an output of numbers: slices, or groups of slices, with a scale of their own."""
    shape = np.shape(found.count)
    rank = len(shape)
    if found.moved is not None:
        axes = [-1] if shape[0] > 1 else []
    else:
        wide = [a - rank for a in range(rank) if shape[a] > 1]
        axes = sorted({wide[0], wide[-1]}, key=lambda a: shape[a]) if wide else []
    for axis in axes:
        spreads = _spreads(found, axis)
        groups = _groups(spreads)
        if len(groups) > 1:
            outer = found.moved if found.moved is not None else axis
            return [Part(outer, spans_of(sorted(g))) for g in groups]
    return [Part()]


def _groups(spreads: Array) -> list[list[int]]:
    """Slices in groups of like spread, the largest first. Of features, groups of less than a hundredth
    are nobody's scale: they belong to the next."""
    order = np.argsort(-spreads, kind="stable")
    if len(spreads) <= NAMED:
        named: list[list[int]] = []
        for index in order:
            if named and spreads[index] * DIFFERENT >= spreads[named[-1][0]]:
                named[-1].append(int(index))
            else:
                named.append([int(index)])
        return [sorted(g, key=lambda i: -spreads[i]) for g in named]
    ordered = spreads[order]
    cuts = np.flatnonzero(ordered[:-1] > GAP * ordered[1:]) + 1
    groups: list[list[int]] = []
    for run in np.split(order, cuts):
        if groups and min(len(run), len(groups[-1])) * 100 < len(spreads):
            groups[-1] += [int(i) for i in run]
        else:
            groups.append([int(i) for i in run])
    return groups


def measure(found: Elements, part: Part) -> PartFidelity:
    """The part's spread, and its SQNR beside that."""
    count, centred, power, noise, low, high = (
        _of(array, part, found)
        for array in (found.count, found.centred, found.power, found.noise, found.low, found.high)
    )
    total = float(count.sum())
    if not total:
        return PartFidelity(part, 0.0, BEST_DB)
    spread = _spread(
        float(power.sum()), float(centred.sum()), total, count, low, high, found.is_centred
    )
    return PartFidelity(part, spread, decibels(spread**2, float(noise.sum()) / total))


def weakest(found: Elements, measured: PartFidelity) -> PartFidelity:
    """The named quantity of a part that decides about it, with its SQNR as far as that counts; else the part."""
    part, shape = measured.part, np.shape(found.count)
    axis = -1 if found.moved is not None else part.axis
    if not shape or (not part.spans and sum(n > 1 for n in shape) > 1):
        return measured
    if not part.spans and max(shape) > 1:
        axis = next(a - len(shape) for a, n in enumerate(shape) if n > 1)
    length = shape[axis]
    if length > NAMED or length == 1:
        return measured
    outer = found.moved if found.moved is not None else axis
    each = [
        measure(found, Part(outer, ((i, i + 1),)))
        for i in (indices(part.spans) if part.spans else range(length))
    ]
    worst = min(each, key=lambda m: m.sqnr_db)
    allowed = worst.sqnr_db + SLICE_SLACK_DB
    if allowed >= measured.sqnr_db:
        return measured
    return msgspec.structs.replace(worst, sqnr_db=allowed)


def _spread(
    power: float, centred: float, total: float, count: Array, low: Array, high: Array, known: bool
) -> float:
    size = float(np.sqrt(power / total))
    # The mean was taken from the same samples: one of them tells nothing.
    free = total * (1.0 - 1.0 / max(float(count.max()), 2.0))
    spread = float(np.sqrt(centred / free)) if known else size
    least, most = float(low.min()), float(high.max())
    if least >= -1e-3 and most <= 1.0 + 1e-3 and most - least < SHARE_MOVES:
        return max(spread, SHARE_SPREAD)
    return spread if spread > CONSTANT * size else CONSTANT_SPREAD * size


def _spreads(found: Elements, axis: int) -> Array:
    """The spread of each slice along an axis of the elements."""
    length = np.shape(found.count)[axis]
    moved = [
        np.moveaxis(a, axis, 0).reshape(length, -1)
        for a in (found.power, found.centred, found.count, found.low, found.high)
    ]
    return np.array(
        [
            _spread(float(p.sum()), float(c.sum()), max(float(n.sum()), 1.0), n, lo, hi, found.is_centred)
            for p, c, n, lo, hi in zip(*moved, strict=True)
        ]
    )  # fmt: skip


def _of(array: Array, part: Part, found: Elements) -> Array:
    if not part.spans:
        return array
    axis = -1 if found.moved is not None else part.axis
    return np.take(array, indices(part.spans), axis)


def indices(spans: Iterable[tuple[int, int]]) -> Array:
    """The indices that spans stand for."""
    return np.concatenate([np.arange(a, b) for a, b in spans])


def decibels(signal: float, noise: float) -> float:
    """10*log10(signal / noise), within what JSON can say."""
    if noise == 0.0:
        return BEST_DB
    if signal == 0.0 or not np.isfinite(noise):
        return -BEST_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -BEST_DB, BEST_DB))
