"""The budgets there are, and how their limits are written: `5 MB`, `3 ms`, `97.5 %`.

Adding a budget: a line here, a field in `config.GateTable`, a rule in `judge`, a flag in the command.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, Literal

import msgspec

from edgeserve.errors import UsageError

Unit = Literal["size", "time", "points", "share", "decibels", "cosine", "ratio"]
Value = int | float | str


class Budget(msgspec.Struct, frozen=True):
    """One thing a limit can be set on. `remedy` says how to meet it without changing the limit."""

    key: str
    unit: Unit
    remedy: str

    @property
    def is_maximum(self) -> bool:
        return self.key.startswith("max_")

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")


_SMALLER: Final = "convert with --precision int8, or train a smaller model"
_FASTER: Final = "convert with --precision int8, for a faster device, or train a smaller model"
_RIGHTER: Final = "calibrate on more, or more typical, samples; or convert with --precision fp16"
_PLACED: Final = (
    "edgeserve check names the operators; another precision or runtime may support them"
)

BUDGETS: Final[dict[str, Budget]] = {
    b.key: b
    for b in (
        Budget("max_size", "size", _SMALLER),
        Budget("max_bundle_size", "size", "convert with one --precision, so that fewer variants are kept"),
        Budget("max_latency_p50", "time", _FASTER),
        Budget("max_latency_p99", "time", _FASTER),
        Budget("min_speedup", "ratio", _FASTER),
        Budget("max_peak_rss", "size", "LiteRT needs the least memory; int8 needs less than fp32"),
        Budget("max_accuracy_drop", "points", _RIGHTER),
        Budget("min_accuracy", "share", _RIGHTER),
        Budget("min_fidelity", "share", _RIGHTER),
        Budget("min_sqnr_db", "decibels", _RIGHTER),
        Budget("min_cosine", "cosine", _RIGHTER),
        Budget("min_on_device", "share", _PLACED),
    )
}  # fmt: skip

_NUMBER: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµμ%]*)\s*", re.ASCII)
# The unit's own multiple of what is stored; "" is a number without a unit.
_SIZES: Final = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9,
                 "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}  # fmt: skip
_TIMES: Final = {"": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_UNITS: Final[dict[Unit, Mapping[str, float]]] = {
    "size": _SIZES,
    "time": _TIMES,
    "points": {"": 1.0, "points": 1.0, "point": 1.0},
    "share": {"": 1.0, "%": 0.01},
    "decibels": {"": 1.0, "db": 1.0},
    "cosine": {"": 1.0},
    "ratio": {"": 1.0, "x": 1.0},
}
_EXAMPLES: Final[dict[Unit, str]] = {
    "size": 'a number of bytes, or "5 MB", "5 MiB"',
    "time": 'a number of milliseconds, or "3 ms", "250 us", "1.5 s"',
    "points": "percentage points: 0.5",
    "share": 'a share from 0 to 1, or "97.5 %"',
    "decibels": "decibels: 25",
    "cosine": "a cosine from 0 to 1: 0.99",
    "ratio": "how many times faster: 2.5",
}


def parse_limit(budget: Budget, value: Value, where: str) -> float:
    """The limit in bytes, ms, percentage points, a share, dB or a ratio. Raises UsageError."""
    number = _parse(budget.unit, value)
    within = budget.unit not in ("share", "cosine") or (number is not None and number <= 1)
    if number is None or not within:
        raise UsageError(
            f"{where}: {value!r} is not a valid limit for {budget.key}", hint=_EXAMPLES[budget.unit]
        )
    return number


def _parse(unit: Unit, value: Value) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and value >= 0 else None
    match = _NUMBER.fullmatch(value)
    if match is None:
        return None
    factor = _UNITS[unit].get(match[2].lower())
    number = None if factor is None else float(match[1]) * factor
    return number if number is not None and math.isfinite(number) else None


def limit_text(unit: Unit, value: float) -> str:
    """A value as it is shown, in the form limits are written in."""
    if unit == "size":
        for name, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= factor:
                return f"{_digits(value / factor, 4)} {name}"
        return f"{value:.0f} B"
    if unit == "time":
        return f"{_digits(value, 4)} ms"
    if unit == "points":
        return f"{value:.2f} points"
    if unit == "share":
        return f"{_digits(100 * value, 4)} %"
    if unit == "decibels":
        return f"{value:.1f} dB"
    return _digits(value, 5) if unit == "cosine" else f"{_digits(value, 3)}x"


def _digits(value: float, count: int) -> str:
    """`count` significant digits, never with an exponent: what is shown can be pasted as a limit."""
    return format(Decimal(f"{value:.{count}g}"), "f")
