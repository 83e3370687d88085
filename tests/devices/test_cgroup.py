"""Limits of containers, on trees as the kernel shows them, and on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.devices import usable_cores
from edgeserve.devices.cgroup import cpu_quota, memory_limit

GIB = 1 << 30


def machine_tree(
    folder: Path, own: str, mounts: dict[str, tuple[str, str, str]], files: dict[str, str]
) -> Path:
    """A /proc in `folder` whose mounts (name -> root, type, options) lie beside it."""
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(own)
    lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
    for number, (name, (root, kind, options)) in enumerate(mounts.items(), start=30):
        (folder / name).mkdir(parents=True, exist_ok=True)
        mount = str(folder / name).replace(" ", "\\040")
        lines.append(f"{number} 22 0:{number} {root} {mount} rw - {kind} {kind} {options}")
    (proc / "self" / "mountinfo").write_text("\n".join(lines) + "\n")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return proc


V2 = {"sys": ("/", "cgroup2", "rw,nsdelegate")}
V1 = {
    "cpu": ("/", "cgroup", "rw,cpu,cpuacct"),
    "memory": ("/", "cgroup", "rw,memory"),
}
NO_LIMIT_V1 = "9223372036854771712\n"

CASES = {
    "v2, container with its own namespace": (
        "0::/\n", V2, {"sys/cpu.max": "150000 100000\n", "sys/memory.max": f"{GIB}\n"}, 1.5, GIB,
    ),
    "v2, no limit": ("0::/\n", V2, {"sys/cpu.max": "max 100000\n", "sys/memory.max": "max\n"}, None, None),
    "v2, a systemd slice above the service limits more": (
        "0::/app.slice/app.service\n",
        V2,
        {
            "sys/app.slice/cpu.max": "100000 100000\n",
            "sys/app.slice/app.service/cpu.max": "400000 100000\n",
            "sys/app.slice/memory.max": f"{2 * GIB}\n",
            "sys/app.slice/app.service/memory.max": f"{3 * GIB}\n",
        },
        1.0,
        2 * GIB,
    ),
    "v1, path as the host sees it, mount shows the container's part": (
        "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        {
            "cpu": ("/docker/abc", "cgroup", "rw,cpu,cpuacct"),
            "memory": ("/docker/abc", "cgroup", "rw,memory"),
        },
        {
            "cpu/cpu.cfs_quota_us": "50000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": f"{GIB}\n",
        },
        0.5,
        GIB,
    ),
    "v1, no limit": (
        "5:memory:/\n4:cpu,cpuacct:/\n",
        V1,
        {
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": NO_LIMIT_V1,
        },
        None,
        None,
    ),
    "v1, path outside the mount: its top counts": (
        "5:memory:/elsewhere\n4:cpu,cpuacct:/../x\n",
        V1,
        {
            "cpu/cpu.cfs_quota_us": "200000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "x/cpu.cfs_quota_us": "1\n",
            "memory/memory.limit_in_bytes": f"{GIB}\n",
        },
        2.0,
        GIB,
    ),
    "v1 limits beside an empty v2 (hybrid)": (
        "4:cpu,cpuacct:/a\n0::/a\n",
        {**V1, "unified": ("/", "cgroup2", "rw")},
        {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        3.0,
        None,
    ),
    "a file that makes no sense": ("0::/\n", V2, {"sys/cpu.max": "\n", "sys/memory.max": "many\n"}, None, None),
    "period zero": ("0::/\n", V2, {"sys/cpu.max": "100000 0\n"}, None, None),
    "no cgroups": ("", {}, {}, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("folder", ["plain", "with space"])
def test_limits(tmp_path: Path, name: str, folder: str) -> None:
    own, mounts, files, quota, memory = CASES[name]
    proc = machine_tree(tmp_path / folder, own, mounts, files)
    assert cpu_quota(proc) == quota
    assert memory_limit(proc) == memory


def test_without_proc_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None
    assert usable_cores(tmp_path) >= 1


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("199999", 1), ("100000000", None)])
def test_a_quota_is_rounded_down_to_at_least_one_core(
    tmp_path: Path, quota: str, cores: int | None
) -> None:
    proc = machine_tree(tmp_path, "0::/\n", V2, {"sys/cpu.max": f"{quota} 100000\n"})
    assert usable_cores(proc) == (cores or usable_cores(tmp_path / "nothing"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_affinity_counts() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from edgeserve.devices import usable_cores; print(usable_cores())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "1\n"


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, edgeserve.devices\n"
        "print(sorted({'numpy', 'psutil', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
