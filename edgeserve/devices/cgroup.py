"""How many cores and how much memory this process may use, as containers limit it.

Reads cgroup v1 and v2 as the kernel documents them:
https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


def usable_cores(proc: Path = PROC) -> int:
    """Cores this process may keep busy: its CPU affinity, within the container's CPU quota.

    A fractional quota is rounded down (at least 1): a thread too many is throttled with all others.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = cpu_quota(proc)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(proc: Path = PROC) -> float | None:
    """The container's CPU limit in cores; None where there is none."""
    quotas = []
    for folder in _folders(proc, "cpu"):
        if limit := _words(folder / "cpu.max"):  # v2: "max 100000" or "150000 100000"
            quotas.append(_ratio(*limit[:2]))
        elif limit := _words(folder / "cpu.cfs_quota_us"):  # v1: -1 without limit
            quotas.append(_ratio(*limit[:1], *_words(folder / "cpu.cfs_period_us")[:1]))
    return min((q for q in quotas if q is not None), default=None)


def memory_limit(proc: Path = PROC) -> int | None:
    """The container's memory limit in bytes; None where there is none."""
    limits = []
    for folder in _folders(proc, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(folder / name)
            # Without a limit v2 says "max", and v1 a number near 2**63.
            if words and words[0].isdigit() and int(words[0]) < 1 << 60:
                limits.append(int(words[0]))
    return min(limits, default=None)


def _ratio(quota: str = "max", period: str = "") -> float | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _folders(proc: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup folders for a controller, innermost first: a limit of each applies."""
    paths = _own_cgroups(proc)
    for root, mount, kind, options in _mounts(proc):
        path = paths.get(controller if kind == "cgroup" else "")
        if path is None or (kind == "cgroup" and controller not in options):
            continue
        # Inside a container the mount shows the tree from `root` on, or from the namespace's root.
        inner = path.removeprefix(root.rstrip("/")) if path.startswith(root) else path
        folder = mount / inner.lstrip("/")
        if ".." in folder.parts or not folder.is_dir():  # ".." leads out of a cgroup namespace
            folder = mount
        yield folder
        while folder != mount and mount in folder.parents:
            folder = folder.parent
            yield folder


def _own_cgroups(proc: Path) -> dict[str, str]:
    """Controller -> path of this process's cgroup; the v2 hierarchy is called ''."""
    cgroups = {}
    for line in _lines(proc / "self" / "cgroup"):
        parts = line.split(":", 2)  # hierarchy-id:controllers:path
        if len(parts) == 3:
            cgroups.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return cgroups


def _mounts(proc: Path) -> Iterator[tuple[str, Path, str, list[str]]]:
    """(root, mount point, "cgroup" or "cgroup2", super options) of every mounted hierarchy."""
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            mount = fields[4].replace("\\040", " ")  # the kernel escapes spaces
            yield fields[3], Path(mount), kind[0], kind[-1].split(",")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(file: Path) -> list[str]:
    lines = _lines(file)
    return lines[0].split() if lines else []
