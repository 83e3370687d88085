"""The samples of one conversion: to calibrate on, to prove on, and which of them say what."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.conversion.options import Options
from edgeserve.errors import DataError
from edgeserve.evaluate import Kinds, Samples, class_scores, load_labelled, load_samples
from edgeserve.evaluate.made_up import Span, made_up_samples
from edgeserve.evaluate.metrics import looks_like_scores
from edgeserve.evaluate.streams import (
    COMMAND,
    from_callable,
    from_command,
    imbalance,
    named_callable,
)
from edgeserve.tensors import Interface

PROOF_SAMPLES: Final = 256
MIN_HELD_OUT: Final = 32
# Tokens, frames, pixels a side of random samples, where the model leaves them open.
OPEN_SIZE: Final = 64


class Data(msgspec.Struct, frozen=True):
    """The samples of one conversion: to calibrate on, and to prove on."""

    calibration: Samples | None
    proof: Samples
    remarks: tuple[str, ...]

    @property
    def random(self) -> tuple[Samples, ...]:
        """Those of the samples that are made up."""
        return tuple(s for s in (self.proof, self.calibration) if s is not None and s.random)

    @classmethod
    def load(
        cls,
        interface: Interface,
        options: Options,
        spans: Mapping[str, Span] | None = None,
        open_size: int = OPEN_SIZE,
        kinds: Kinds | None = None,
    ) -> Data:
        """`spans` say what random samples are made of, `open_size` is that of their dynamic dimensions, `kinds`
        is what outputs hold. Raises DataError, before anything expensive is done."""
        remarks: list[str] = []
        classes = _classes(interface, options, kinds or {})
        pool = _calibration_pool(interface, options, spans, open_size)
        calibration = pool.take(options.calibration_samples) if pool else None
        if calibration is not None and calibration.random:
            remarks.append("calibrated on random data: int8 accuracy on real inputs is unknown")
        if calibration is not None and calibration.labels is not None:
            skewed = imbalance(calibration.labels)
            if skewed is not None:
                remarks.append(f"calibration data: {skewed}")
        if options.evaluate is not None:
            labelled = load_labelled(Path(options.evaluate), interface, options.preprocess, classes)
            _check_labels(labelled, interface, kinds or {})
            if class_scores(interface, kinds or {}) is None:
                remarks.append("the model has no class scores: accuracy is not measured")
            return cls(calibration, labelled, tuple(remarks))
        if pool is None:
            remarks.append(
                "no calibration data: static int8 was not tried, fidelity is on random inputs"
            )
            proof = made_up_samples(interface, MIN_HELD_OUT, spans, open_size=open_size)
            return cls(None, proof, tuple(remarks))
        if pool.random:
            return cls(calibration, pool, tuple(remarks))
        held_out = _without(pool, options.calibration_samples)
        if held_out is not None:
            return cls(calibration, held_out.take(PROOF_SAMPLES), tuple(remarks))
        remarks.append("fidelity is on the calibration samples themselves (no --eval, few samples)")
        return cls(calibration, pool.take(PROOF_SAMPLES), tuple(remarks))


def _check_labels(labelled: Samples, interface: Interface, kinds: Kinds) -> None:
    """Raise DataError for labels that are not an index of the class scores: no answer could be right, and none
    of a worse variant less so."""
    scores = class_scores(interface, kinds)
    classes = next((s.shape[1] for s in interface.outputs if s.name == scores), None)
    if not isinstance(classes, int) or labelled.labels is None:
        return
    most = max(classes, 2)
    wrong = next((v for v in labelled.labels if not 0 <= v < most), None)
    if wrong is not None:
        raise DataError(
            f"{labelled.source}: label {wrong} is not the index of a class",
            cause=f"output '{scores}' has {most} classes: labels are 0 to {most - 1}",
        )


def _calibration_pool(
    interface: Interface, options: Options, spans: Mapping[str, Span] | None, open_size: int
) -> Samples | None:
    if options.calibrate is None:
        return None
    if options.calibrate == "random":
        return made_up_samples(interface, options.calibration_samples, spans, open_size=open_size)
    wanted = options.calibration_samples + PROOF_SAMPLES
    if callable(options.calibrate):
        name = getattr(options.calibrate, "__qualname__", "the callable")
        return from_callable(options.calibrate, interface, wanted, name)
    if options.calibrate.startswith(COMMAND):
        with tempfile.TemporaryDirectory() as folder:
            text = options.calibrate.removeprefix(COMMAND).strip()
            file, name = from_command(text, interface, Path(folder))
            pool = load_samples(file, interface, options.preprocess)
            pool.source = name
            return pool
    if _is_function(options.calibrate):
        make = named_callable(options.calibrate)
        return from_callable(make, interface, wanted, options.calibrate)
    return load_samples(Path(options.calibrate), interface, options.preprocess)


def _is_function(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text)) and not Path(text).exists()


def _without(pool: Samples, taken: int) -> Samples | None:
    """The samples that `take(taken)` leaves, when they are enough to prove anything."""
    if len(pool) < taken + MIN_HELD_OUT:
        return None
    return pool.leave(taken)


def _classes(interface: Interface, options: Options, kinds: Kinds) -> list[str] | None:
    if options.labels is None:
        return None
    path = Path(options.labels)
    try:
        names = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable list of classes", cause=str(error)) from None
    scores = class_scores(interface, kinds)
    if scores is None and len(interface.outputs) == 1 and looks_like_scores(interface.outputs[0]):
        scores = interface.outputs[0].name
    spec = next((s for s in interface.outputs if s.name == scores), None)
    if spec is not None and spec.shape[1] not in (1, len(names)):
        raise DataError(
            f"{path} names {len(names)} classes, output '{spec.name}' has {spec.shape[1]}",
            hint="one class per line, in the order of the model's scores",
        )
    return names
