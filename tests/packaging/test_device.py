"""Devices: names, Python versions, and the glibc that wheels need."""

from __future__ import annotations

import platform
import sys

import pytest

from edgeserve.errors import UsageError
from edgeserve.packaging.device import device, glibc_of


def test_this_machine_unless_told_otherwise() -> None:
    here = device()
    assert (here.arch, here.python) == (platform.machine(), sys.version_info[:2])


@pytest.mark.parametrize(
    ("given", "arch"), [("arm64", "aarch64"), ("AMD64", "x86_64"), ("aarch64", "aarch64")]
)
def test_architectures_have_one_name(given: str, arch: str) -> None:
    assert device(given).arch == arch


def test_pip_is_asked_for_the_device_not_for_this_machine() -> None:
    arguments = device("aarch64", "3.13").pip_arguments()
    assert arguments[arguments.index("--python-version") + 1] == "3.13"
    assert "manylinux_2_28_aarch64" in arguments
    assert not any("x86_64" in a for a in arguments)


@pytest.mark.parametrize(
    ("arch", "python", "hint"),
    [
        ("x86-64", None, "--arch x86_64 or aarch64"),
        ("riscv64", None, "x86_64"),
        (None, "3.9", "3.11"),
    ],
)
def test_unknown_devices_are_refused(arch: str | None, python: str | None, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        device(arch, python)
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize(
    ("name", "glibc"),
    [
        ("a-1.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", (2, 27)),
        ("a-1.0-cp311-cp311-manylinux1_x86_64.manylinux_2_5_x86_64.whl", (2, 5)),
        ("a-1.0-cp310-abi3-manylinux2014_aarch64.whl", (2, 17)),
        ("a-1.0-py3-none-any.whl", None),
    ],
)
def test_glibc_from_a_wheels_name(name: str, glibc: tuple[int, int] | None) -> None:
    assert glibc_of(name) == glibc
