"""Sizes of dimensions as the analysis of rows knows them: numbers, or products of symbols.

One symbol is the number of rows, `BATCH`. What cannot be written as a product becomes a symbol of its own,
which remembers whether the number of rows went into it.
"""

from __future__ import annotations

import hashlib
from functools import reduce
from typing import Any, Final

import msgspec

# No name in a model's file has this character.
BATCH: Final = "\0rows"


class Dim(msgspec.Struct, frozen=True):
    """`factor` times the `symbols`, which are sorted and may repeat; there is at least one."""

    factor: int
    symbols: tuple[str, ...]


# An element of a shape, or of a small tensor that a shape is made of.
Element = int | float | bool | Dim

ROWS: Final = Dim(1, (BATCH,))


_ONE: Final[Element] = 1


def symbol(name: str) -> Dim:
    return Dim(1, (name,))


def product(elements: Any) -> Element:
    return reduce(times, elements, _ONE)


def times(a: Element, b: Element) -> Element:
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        return a * b
    if isinstance(a, float) or isinstance(b, float):
        return opaque("times", a, b)
    left, right = _parts(a), _parts(b)
    return _made(left[0] * right[0], left[1] + right[1])


def divide(a: Element, b: Element) -> Element | None:
    """The exact quotient; None where it does not exist or is not known."""
    if isinstance(a, float) or isinstance(b, float):
        return None
    (factor, symbols), (divisor, others) = _parts(a), _parts(b)
    rest = list(symbols)
    for name in others:
        if name not in rest:
            return None
        rest.remove(name)
    if divisor == 0 or factor % divisor:
        return None
    return _made(factor // divisor, tuple(rest))


def plus(a: Element, b: Element) -> Element:
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        return a + b
    if not isinstance(a, float) and not isinstance(b, float):
        left, right = _parts(a), _parts(b)
        if left[1] == right[1]:
            return _made(left[0] + right[0], left[1])
        if 0 in (a, b):
            return b if a == 0 else a
    return opaque("plus", a, b)


def minus(a: Element, b: Element) -> Element:
    return plus(a, times(b, -1))


def quotient(a: Element, b: Element) -> Element:
    """ONNX's division of integers."""
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        if b == 0:
            return 0
        if isinstance(a, float) or isinstance(b, float):
            return a / b
        return int(a / b)
    exact = divide(a, b)
    return opaque("quotient", a, b) if exact is None else exact


def equal(a: Element, b: Element) -> bool | None:
    """None where it depends on sizes that are not known. Sizes are not negative."""
    if a == b:
        return True
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        return False
    number = b if isinstance(a, Dim) else a
    if not isinstance(number, Dim) and number < 0:
        return False
    return None


def opaque(name: str, *elements: object) -> Dim:
    """A symbol of its own for what is made of these elements; the same one each time."""
    text = f"{name}({', '.join(map(repr, elements))})"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Dim(1, (f"{BATCH if any(counts_rows(e) for e in elements) else ''}#{digest}",))


def counts_rows(element: object) -> bool:
    """Whether the number of rows went into it."""
    return isinstance(element, Dim) and any(BATCH in name for name in element.symbols)


def rows_in(element: object) -> Element | None:
    """`element` divided by the number of rows; None unless it is a multiple of that."""
    if not isinstance(element, Dim) or element.symbols.count(BATCH) != 1:
        return None
    rest = divide(element, ROWS)
    return None if counts_rows(rest) else rest


def _parts(element: Element) -> tuple[int, tuple[str, ...]]:
    if isinstance(element, Dim):
        return element.factor, element.symbols
    return int(element), ()


def _made(factor: int, symbols: tuple[str, ...]) -> Element:
    return Dim(factor, tuple(sorted(symbols))) if symbols and factor else factor
