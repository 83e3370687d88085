"""Running a batch on one opened candidate: in parts where memory is short, and checked where asked for."""

from __future__ import annotations

import logging
from typing import Final

import numpy as np

from edgeserve.bundle import Bundle
from edgeserve.chain.failures import (
    NonFinite,
    all_finite,
    finite_outputs,
    inputs_are_finite,
    is_out_of_memory,
)
from edgeserve.chain.golden import deviation, golden_batches
from edgeserve.chain.memory import Extent
from edgeserve.chain.opening import OpenedCandidate
from edgeserve.chain.options import ChainOptions
from edgeserve.errors import (
    DeviceLost,
    EdgeServeError,
    InferenceFailed,
    InvalidInput,
    WrongNumbers,
)
from edgeserve.runtimes import Session
from edgeserve.tensors import Tensors

log = logging.getLogger(__name__)

# One sample's error may exceed that of all together, which the tolerance is about.
_SAMPLE_SLACK: Final = 4.0


class Runner:
    """What one call is, for every candidate of a chain. `alone` says that there is only a CPU, whose NaN
    is as good an answer as any."""

    def __init__(self, bundle: Bundle, options: ChainOptions, *, alone: bool) -> None:
        self._bundle = bundle
        self._batched = bundle.manifest.interface.max_batch > 0
        self._most = bundle.manifest.interface.max_batch
        known = bundle.manifest.batching
        self._independent = known is not None and known.max_batch > 1
        self._finite = () if alone else finite_outputs(bundle)
        self._sample: tuple[Tensors, Tensors] | None = None
        if options.verify:
            inputs, outputs = bundle.golden()
            interface = bundle.manifest.interface
            self._sample = (
                golden_batches(interface, inputs)[0],
                golden_batches(interface, outputs)[0],
            )

    def answer(self, opened: OpenedCandidate, inputs: Tensors) -> Tensors:
        """The outputs for `inputs`. Raises InferenceFailed; NonFinite and WrongNumbers among them."""
        outputs = (
            self._run(opened, inputs)
            if self._sample is None
            else self._verified(opened, inputs, *self._sample)
        )
        if self._finite and not all_finite(outputs, self._finite) and inputs_are_finite(inputs):
            raise NonFinite(outputs, opened.candidate.label)
        return outputs

    def _run(self, opened: OpenedCandidate, inputs: Tensors) -> Tensors:
        rows = len(next(iter(inputs.values()))) if self._apart(opened) else 1
        # A variant that lets rows interact, where the source does not, has been proven on single rows.
        singly = rows > 1 and opened.batching.max_batch <= 1
        room = opened.room
        if not singly and (not room.size or room.takes(_extent(rows, inputs))):
            try:
                outputs = _called(opened.session, inputs)
            except InferenceFailed as error:
                _cut(opened, _extent(rows, inputs), error)
            else:
                if room.size:
                    room.fitted(_extent(rows, inputs))
                return outputs
        step = 1 if singly else room.step(_extent(rows, inputs))
        parts = [
            self._run(opened, {n: a[i : i + step] for n, a in inputs.items()})
            for i in range(0, rows, step)
        ]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _apart(self, opened: OpenedCandidate) -> bool:
        """Whether the rows of a request may be run apart: the model is known to keep them so."""
        return self._batched and (self._independent or opened.batching.max_batch > 1)

    def _verified(
        self, opened: OpenedCandidate, inputs: Tensors, sample: Tensors, expected: Tensors
    ) -> Tensors:
        """Run `inputs` together with a golden sample, whose outputs must be right."""
        fits = opened.batching.max_batch > 1 and all(
            inputs[name].shape[1:] == a.shape[1:] for name, a in sample.items()
        )
        rows = len(next(iter(inputs.values())))
        if fits and rows < min(self._most, opened.batching.max_batch):
            joined = {n: np.concatenate([a, sample[n]]) for n, a in inputs.items()}
            both = self._run(opened, joined)
            outputs = {n: a[:rows] for n, a in both.items()}
            got = {n: a[rows:] for n, a in both.items()}
        else:
            outputs = self._run(opened, inputs)
            got = self._run(opened, sample)
        manifest = self._bundle.manifest
        variant = manifest.variant(opened.candidate.variant)
        found = deviation(variant, manifest.interface, [sample], [expected], [got], _SAMPLE_SLACK)
        if not found.is_fine:
            raise WrongNumbers(
                f"{opened.candidate.label} no longer reproduces a golden sample",
                cause=found.cause,
                hint="the device computes wrong numbers: update its driver, or check its memory",
            )
        return outputs


def _extent(rows: int, inputs: Tensors) -> Extent:
    return Extent(rows, max(rows, sum(a.nbytes for a in inputs.values())))


def _cut(opened: OpenedCandidate, batch: Extent, error: InferenceFailed) -> None:
    """Run smaller batches from now on. Raises `error` where that does not help."""
    if batch.rows == 1 or isinstance(error, DeviceLost) or not is_out_of_memory(error):
        raise error
    opened.room.cut(batch)
    text = "%s: %s; batches as large are run in parts of %d"
    log.warning(text, opened.candidate.label, error, opened.room.rows)


def _called(session: Session, inputs: Tensors) -> Tensors:
    try:
        return session.run(inputs)
    except (InferenceFailed, InvalidInput):
        raise
    except EdgeServeError as error:
        raise InferenceFailed(error.message, cause=error.cause, hint=error.hint) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise InferenceFailed(f"the engine failed on {session.device}", cause=cause) from error
