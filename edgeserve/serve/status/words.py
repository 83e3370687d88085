"""The words of the status page: states, times and sizes for people."""

from __future__ import annotations

import time
from typing import Final

from edgeserve.serve.status.status import ModelStatus, ServerStatus

STATES: Final = {
    "serving": "serving",
    "standby": "standby, open",
    "waiting": "failed",
    "out": "cannot run here",
    "closed": "standby, not open",
    "unused": "not used: fallback is off",
}


def word_of(server: ServerStatus) -> str:
    """How the server is."""
    if not server.ready:
        return "not ready" if server.serving else "draining or starting"
    return "degraded" if server.degraded else "ready"


def model_word(model: ModelStatus) -> str:
    """How a model is."""
    if not model.ready:
        return "not ready"
    return "degraded: not on its first candidate" if model.degraded else "ready"


def clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def span(seconds: float) -> str:
    """`0.8 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for unit, size_s, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):  # fmt: skip
        if whole >= size_s:
            return f"{whole // size_s} {unit} {whole % size_s // part} {smaller}"
    return f"{whole} s"


def size(count: int) -> str:
    """`812 B`, `1.2 kB`, `104 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def iso(seconds: float) -> str:
    """For <time datetime>."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
