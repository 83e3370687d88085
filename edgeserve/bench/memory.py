"""Resident memory of this process, in bytes. Memory on an accelerator is not in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")


def rss_bytes() -> int:
    value = _status("VmRSS")
    if value is not None:
        return value
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """The highest resident memory so far.

    Linux: VmHWM of /proc/self/status (proc(5)). Not getrusage's ru_maxrss, in which a child starts
    with the size its parent had at the fork (the kernel's fs/exec.c, exec_mmap).
    """
    value = _status("VmHWM")
    if value is not None:
        return value
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    # Bytes on macOS, where /proc is missing; kibibytes on the BSDs (their getrusage(2)).
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status(field: str) -> int | None:
    try:
        text = _STATUS.read_text("ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    return None
