"""The source's first run, on data that fit it: what nothing can be proven without.

Where there are no data, random ones are made up for this model, larger and smaller ones, until it runs on them. A
model that onnxruntime's optimizations break is opened with fewer of them; so is, then, what serves.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec
import numpy as np

from edgeserve.conversion.data import Data
from edgeserve.conversion.options import Options
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.conversion.sources.plausible import plausible_spans
from edgeserve.errors import (
    DataError,
    EdgeServeError,
    InferenceFailed,
    SourceError,
    UnsupportedModel,
)
from edgeserve.evaluate import Samples
from edgeserve.evaluate.made_up import Span, careful_span
from edgeserve.runtimes import Session
from edgeserve.targets.schema import Target
from edgeserve.tensors import Tensors

# Sizes of open dimensions (tokens, frames, pixels a side) of random samples, in the order they are tried.
_OPEN_SIZES: Final = (64, 512, 4096, 16, 1)
# Elements that one random sample may have.
_MOST_ELEMENTS: Final = 4_000_000
# Upper ends for integers that nothing in the model limits.
_CAPS: Final = (None, 2**31 - 1, 1000, 16, 1)
# Random samples that the model must run on before they are used, and how long that may take.
_FEW: Final = 8
_FEW_S: Final = 5.0
# Run-to-run differences below this share of the output are the order of sums.
_SAME: Final = 1e-3
# onnxruntime's optimization levels, the most first; "all" is what is used unless it breaks the model.
LEVELS: Final = ("extended", "basic", "disabled")
LEVEL_OPTION: Final = "graph_optimization_level"

Open = Callable[[str | None], Session]


class FirstRun(msgspec.Struct, frozen=True):
    """The open source, and the data that it runs on; `level` is the optimization level that it needed, if it is
    another than usual."""

    reference: Session
    data: Data
    level: str | None = None

    def target(self, target: Target) -> Target:
        """The target, with its onnxruntime entries opened as the source had to be."""
        if self.level is None:
            return target
        chain = tuple(
            msgspec.structs.replace(e, options={**e.options, LEVEL_OPTION: self.level})
            if e.runtime == "onnxruntime"
            else e
            for e in target.chain
        )
        return msgspec.structs.replace(target, chain=chain)


def first_run(model: SourceModel, options: Options, open_at: Open) -> FirstRun:
    """Open the source and run it. `open_at(level)` opens it, at an optimization level of onnxruntime.

    Raises SourceError when it fails on data that were given, DataError when it fails on all random ones or the data
    hold NaN, UnsupportedModel when it does not open, or answers differently each time.
    """
    errors: list[EdgeServeError] = []
    for level in (None, *(LEVELS if model.format == "onnx" else ())):
        try:
            reference = open_at(level)
        except UnsupportedModel as error:
            errors.append(error)
            continue
        with contextlib.ExitStack() as unless_it_runs:
            unless_it_runs.callback(reference.close)
            try:
                data = _fitting(model, options, reference)
            except (SourceError, _Unfit) as error:
                errors.append(error)
                continue
            _check_repeatable(model, reference, data.proof[0])
            unless_it_runs.pop_all()
        if level is not None:
            note = (
                f"onnxruntime's optimizations break this model ({errors[0].cause or errors[0]}): the source and "
                f"what serves in onnxruntime are opened with {LEVEL_OPTION} = {level}"
            )
            data = msgspec.structs.replace(data, remarks=(*data.remarks, note))
        return FirstRun(reference, data, level)
    raise errors[0]


class _Unfit(DataError):
    """The model ran on no random inputs."""


def _fitting(model: SourceModel, options: Options, reference: Session) -> Data:
    """The data that were given, or random ones that the model runs on."""
    data = Data.load(model.interface, options, kinds=model.kinds)
    if not data.random:
        check_runs(reference, data.proof)
        if data.calibration is not None:
            check_runs(reference, data.calibration)
        return data
    if not data.proof.random:
        check_runs(reference, data.proof)
    first: InferenceFailed | None = None
    spare: Data | None = None
    for size, spans, remark in _trials(model):
        made = Data.load(model.interface, options, spans, size, kinds=model.kinds)
        try:
            finite = all(_runs(reference, samples) for samples in made.random)
        except InferenceFailed as error:
            first = first or error
            continue
        made = msgspec.structs.replace(made, remarks=(*made.remarks, *remark))
        if finite:
            return made
        spare = spare or made
    if spare is not None:
        return spare
    assert first is not None
    raise _Unfit(
        f"edgeserve's random inputs do not fit {model.path.name}",
        cause=first.cause,
        hint="give inputs that fit it: --calibrate FILE.npz, one array per input, the first axis counting "
        "samples (docs/convert.md)",
    )


def _trials(model: SourceModel) -> Iterator[tuple[int, Mapping[str, Span], tuple[str, ...]]]:
    """Open sizes with spans to try, the most telling first, and remarks on them."""
    interface = model.interface
    is_open = not all(s.is_static for s in interface.inputs)
    for size in _OPEN_SIZES if is_open else _OPEN_SIZES[:1]:
        elements = sum(_elements(s.shape, size) for s in interface.inputs)
        if elements > _MOST_ELEMENTS and size > 1 and is_open:
            continue
        spans = (
            {s.name: careful_span(s) for s in interface.inputs}
            if model.proto is None
            else plausible_spans(model.proto, interface, size)
        )
        wide = any(span.kind == "wide" for span in spans.values())
        for cap in _CAPS if wide else _CAPS[:1]:
            used = spans if cap is None else {n: s.capped(cap) for n, s in spans.items()}
            yield size, used, tuple(_remarks(model, used, spans, cap))


def _elements(shape: tuple[int | str, ...], size: int) -> int:
    sizes = [d if isinstance(d, int) else size if axis else 1 for axis, d in enumerate(shape)]
    return int(np.prod(sizes, dtype=np.int64))


def _remarks(
    model: SourceModel, used: Mapping[str, Span], spans: Mapping[str, Span], cap: int | None
) -> Iterator[str]:
    """What was made up for inputs that are not floats, and is proven for no more than that."""
    for spec in model.interface.inputs:
        if spec.numpy_dtype.kind == "f":
            continue
        text = f"input '{spec.name}' {spec.dtype}: {used[spec.name].describe()}"
        if cap is not None and spans[spec.name].kind == "wide":
            text += ", since the model fails on larger ones"
        yield f"{text}; pass --calibrate to prove it on real ones"


def _runs(reference: Session, samples: Samples) -> bool:
    """Run a few samples; whether the answers are finite. Raises InferenceFailed."""
    finite, end = True, time.monotonic() + _FEW_S
    for index in range(min(_FEW, len(samples))):
        answers = reference.run(samples[index])
        finite &= not _has_nan(answers)
        if time.monotonic() > end:
            break
    return finite


def check_runs(session: Session, samples: Samples) -> Tensors:
    """Run one sample; raises SourceError when the model itself fails on it, DataError when a sample
    holds NaN or infinity and the model answers NaN: nothing could be proven on that."""
    spoilt = samples.first_not_finite()
    try:
        if spoilt is not None and _has_nan(session.run(samples[spoilt])):
            raise DataError(
                f"{samples.source} holds NaN or infinity",
                cause=f"the model answers NaN to sample {spoilt}",
                hint="remove such samples, or fill in what is missing",
            )
        return session.run(samples[0])
    except InferenceFailed as error:
        raise SourceError(
            f"the source model fails on the first sample of {samples.source}", cause=error.cause
        ) from None


def _check_repeatable(model: SourceModel, session: Session, inputs: Tensors) -> None:
    """Raise UnsupportedModel for a model whose answers to the same input differ: nothing can be proven of it."""
    first, second = session.run(inputs), session.run(inputs)
    for name, one in first.items():
        if not _alike(one, second[name]):
            drawn = _random_nodes(model)
            raise UnsupportedModel(
                f"{model.path.name} answers differently each time: output '{name}'",
                cause=f"it draws random numbers: {', '.join(drawn)}" if drawn else None,
                hint="a variant is proven by reproducing the source's answers: export the model with the "
                "random numbers as an input",
            )


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    wide, got = np.nan_to_num(one.astype(np.float64)), np.nan_to_num(other.astype(np.float64))
    return bool(np.linalg.norm(wide - got) <= _SAME * np.linalg.norm(wide))


def _random_nodes(model: SourceModel) -> list[str]:
    kinds = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
             "Multinomial")  # fmt: skip
    nodes = model.proto.graph.node if model.proto is not None else ()
    return [f"{n.op_type} ({n.name or n.output[0]})" for n in nodes if n.op_type in kinds]


def _has_nan(outputs: Tensors) -> bool:
    return any(bool(np.isnan(a).any()) for a in outputs.values() if a.dtype.kind == "f")
