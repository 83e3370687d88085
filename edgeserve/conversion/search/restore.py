"""Repairing a quantized model: the layers that spoil it go back to fp32, until the bounds are kept.

Greedy: layers are ranked by the noise in them (`quantize.sensitivity`), and the shortest beginning of
that ranking that will do is found by bisection; with the layers that compute the outputs, where it takes those.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.chain import open_apart
from edgeserve.conversion.bounds import quality_problem
from edgeserve.conversion.data import Data
from edgeserve.conversion.job import Job
from edgeserve.conversion.search.builder import Builder
from edgeserve.conversion.search.prove import quality
from edgeserve.errors import DataError, EdgeServeError
from edgeserve.progress import Say
from edgeserve.quantize import LayerError, StaticQuantizer, head_layers, rank_layers
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.targets.schema import ChainEntry
from edgeserve.tensors import Tensors

# A few samples tell where precision is lost: the ranking compares layers, not models.
RANKING_SAMPLES: Final = 8
# With a larger share of the layers in fp32, int8 has little left to win.
_MOST: Final = 0.5


class Restoration(msgspec.Struct, frozen=True):
    """What was restored for an entry of the chain: the `layers` as they were ranked before, the `nodes`
    that are now in fp32, whether the bounds are `met`, else the `reason`, and of which model, `base`."""

    entry: str
    layers: tuple[LayerError, ...]
    nodes: tuple[str, ...]
    met: bool
    reason: str
    base: str = "plain int8"


def explain(builder: Builder, data: Data, work: Path) -> tuple[LayerError, ...]:
    """The layers of the static int8 model, the noisiest first.

    Raises UnsupportedModel, and UsageError without calibration data.
    """
    work.mkdir(exist_ok=True)
    quantized = work / "static.onnx"
    builder.onnx.static.quantize(quantized)
    samples = data.proof.take(RANKING_SAMPLES)
    return tuple(rank_layers(builder.onnx.static.prepared, quantized, samples, work))


def restore(
    job: Job,
    builder: Builder,
    quantizer: StaticQuantizer,
    entry: ChainEntry,
    wanted: list[Tensors],
    *,
    deadline: float,
    say: Say,
) -> Restoration:
    """Find nodes to leave in fp32; afterwards the builder makes `static-restored` plans with them.

    Quality is that on the entry's own runtime. Gives up when most layers would be in fp32: that is not an int8 model any more. `wanted` are the source's outputs on the proof samples; `deadline` is of `time.monotonic`.
    """
    work = quantizer.prepared.parent / "ranking"
    work.mkdir(exist_ok=True)
    format_name, proof = runtime(entry.runtime).formats[0], job.data.proof

    def problem(keep: Sequence[str]) -> str | None:
        files = builder.restore(quantizer, keep, format_name)
        options = LoadOptions(static_shapes=entry.static_shapes, options=entry.options)
        session = open_apart(entry.runtime, files, entry.device, options)
        try:
            outputs = [session.run(inputs) for inputs in proof]
        finally:
            session.close()
        return quality_problem(*quality(job, wanted, outputs), "int8", job.bounds)

    try:
        reason = problem([])
        if reason is None:
            return Restoration(entry.label, (), (), True, "")
        say("looking for the layers that lose precision", None)
        ranking = rank_layers(
            quantizer.prepared, builder.onnx.restored, proof.take(RANKING_SAMPLES), work
        )
        units = [e.unit for e in ranking]
        counts = range(1, len(units) + 1)
        most = max((k for k in counts if len(_joined(units[:k])) <= _MOST * len(units)), default=0)
        always: tuple[str, ...] = ()
        reason = problem(_joined(units[:most])) if most else reason
        if reason is not None:
            # What a head computes is rounded to the range of all of its numbers: to none of their spreads.
            always = head_layers(quantizer.prepared, [e.node for e in ranking])
            if len(_joined([always, *units[:most]])) == len(units):
                always = ()  # no int8 would be left
            if always:
                reason = problem(_joined([always, *units[:most]]))
        if reason is not None:
            count = len(_joined([always, *units[:most]]))
            reason = f"with {count} of {len(units)} layers in fp32 still: {reason}"
            return Restoration(entry.label, tuple(ranking), (), False, reason)
        low, high = -1 if always else 0, most  # `low` are too few, `high` will do
        while high - low > 1 and time.monotonic() < deadline:
            middle = (low + high) // 2
            if problem(_joined([always, *units[:middle]])) is None:
                high = middle
            else:
                low = middle
        kept = _joined([always, *units[:high]])
        problem(kept)  # what the builder keeps is the last file that was made
    except DataError:
        raise  # the calibration data are wrong for every variant
    except EdgeServeError as error:
        return Restoration(entry.label, (), (), False, str(error))
    return Restoration(entry.label, tuple(ranking), tuple(kept), True, "")


def _joined(units: Sequence[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(n for unit in units for n in unit))
