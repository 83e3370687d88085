"""JSON text of any protocol: bounded nesting, parsing, and the words for what came instead."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import orjson

from edgeserve.errors import InvalidInput

_NOT_BRACKETS: Final = bytes(c for c in range(256) if c not in b"[{]}")
_STEP: Final = 1 << 20


def check_depth(data: bytes, most: int) -> None:
    """Bound nesting before parsing. Brackets in strings count too: names hold no hundred of them."""
    if data.count(b"[") + data.count(b"{") <= most:
        return
    depth = 0
    brackets = np.frombuffer(data.translate(None, _NOT_BRACKETS), np.uint8)
    for start in range(0, len(brackets), _STEP):
        # Of the four characters those that open have this bit set.
        steps = (brackets[start : start + _STEP] & 2).astype(np.int8) - 1
        depths = np.cumsum(steps, dtype=np.int64) + depth
        if depths.max() > most:
            raise InvalidInput(f"the JSON is nested deeper than {most} levels")
        depth = int(depths[-1])


def parse_json(data: bytes) -> Any:
    """Any JSON, and the bare NaN and Infinity that Triton's clients send. Raises InvalidInput."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in data and b"Infinity" not in data:
            raise InvalidInput(f"the body is not JSON: {error}") from None
    try:
        return json.loads(data.decode(), parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None


def _finite(text: str) -> float:
    """As orjson reads a number. Raises ValueError for one that no double holds."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text:.40} is out of range")
    return value


def as_object(value: Any, what: str) -> dict[str, Any]:
    """`value`, which must be an object. Raises InvalidInput, which calls it `what`."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{what}: expected an object, got {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "nothing"}
    return names.get(type(value), f"{value!r:.40}")
