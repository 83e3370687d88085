"""Class names, and which outputs of a model they name the classes of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from edgeserve.bundle.fidelity import OutputKind
from edgeserve.tensors import DTYPES, Interface, TensorSpec


class Labels(msgspec.Struct, frozen=True):
    """The class names of one output, and the file that they come from."""

    file: str
    names: tuple[str, ...]


def names_in(text: str) -> tuple[str, ...]:
    """One a line. Only line ends separate them: a name may hold what Unicode calls a line separator."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not lines[-1]:
        lines.pop()
    return tuple(lines)


def labelled(
    interface: Interface, classes: int, kinds: Mapping[str, OutputKind]
) -> tuple[str, ...]:
    """The outputs that `classes` names are for: the only one, or those with as many classes whose kind is
    known to be scores, or the only one with as many.

    Empty if there is no such output: then it is unknown which output the names belong to.
    """
    outputs = [s for s in interface.outputs if DTYPES[s.dtype].kind in "iuf"]
    if len(interface.outputs) == 1:
        return tuple(s.name for s in outputs)
    fitting = [s.name for s in outputs if _classes(s) == classes]
    scores = [n for n in fitting if n in kinds and kinds[n].kind in ("scores", "probabilities")]
    if scores:
        return tuple(scores)
    return tuple(fitting) if len(fitting) == 1 else ()


def _classes(spec: TensorSpec) -> int | None:
    """How many numbers a row of an output holds; None where that varies."""
    row = spec.shape[1:] if len(spec.shape) > 1 else spec.shape
    return math.prod(d for d in row if isinstance(d, int)) if _is_fixed(row) else None


def _is_fixed(row: tuple[int | str, ...]) -> bool:
    return all(isinstance(d, int) for d in row)
