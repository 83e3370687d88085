"""The machine as one record."""

from __future__ import annotations

import platform

import psutil
import pytest

from edgeserve.devices import Machine, machine, usable_cores


def test_this_machine() -> None:
    here = machine()
    assert here.arch == platform.machine()
    assert here.os.startswith(platform.system())
    assert here.cores == usable_cores()
    assert here.memory_bytes is not None
    assert 0 < here.memory_bytes <= psutil.virtual_memory().total


def test_description() -> None:
    board = Machine("Linux 6.6", "aarch64", "Cortex-A76", ("asimddp",), 4, 8_200_000_000)
    assert board.describe() == "Cortex-A76 (aarch64), 4 cores, 8.2 GB, asimddp"


def test_description_leaves_out_what_is_unknown() -> None:
    assert Machine("Plan9", "riscv64", None, None, 1, None).describe() == "riscv64, 1 core"


@pytest.mark.parametrize(
    ("arch", "features", "saturates"),
    [
        ("x86_64", ("avx2",), True),
        ("AMD64", ("avx2", "avx512f"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), False),
        ("x86_64", (), False),
        ("x86_64", None, False),
        ("aarch64", ("asimddp",), False),
    ],
)
def test_int8_sums_saturate_without_vnni(
    arch: str, features: tuple[str, ...] | None, saturates: bool
) -> None:
    assert Machine("Linux", arch, None, features, 1, None).int8_saturates is saturates
