"""The device a package is for: architecture and Python version, as pip and wheels call them."""

from __future__ import annotations

import platform
import re
import sys
from typing import Final

import msgspec

from edgeserve.errors import UsageError

ARCHS: Final = ("x86_64", "aarch64")
_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
# Wheels name the oldest glibc they run with: manylinux_2_17 is glibc 2.17 (PEP 600). pip wants every
# version it may use spelled out, and older names besides.
_GLIBC_MINORS: Final = range(39, 4, -1)
_LEGACY: Final = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}


class Device(msgspec.Struct, frozen=True):
    """A Linux machine with glibc, CPython of one minor version."""

    arch: str
    python: tuple[int, int]

    @property
    def python_text(self) -> str:
        return f"{self.python[0]}.{self.python[1]}"

    def pip_arguments(self) -> list[str]:
        """What makes `pip download` choose wheels for this device, whatever it runs on."""
        platforms = [f"manylinux_2_{minor}_{self.arch}" for minor in _GLIBC_MINORS]
        platforms += [f"{name}_{self.arch}" for name in _LEGACY] + [f"linux_{self.arch}"]
        arguments = ["--only-binary=:all:", "--implementation", "cp"]
        arguments += ["--python-version", self.python_text]
        for name in platforms:
            arguments += ["--platform", name]
        return arguments

    def markers(self) -> dict[str, str]:
        """The environment that requirements' markers are evaluated in (PEP 508)."""
        return {
            "python_version": self.python_text,
            "python_full_version": f"{self.python_text}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python_text}.0",
            "platform_python_implementation": "CPython",
            "platform_machine": self.arch,
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
            "extra": "",
        }


def device(arch: str | None = None, python: str | None = None) -> Device:
    """The device described by flags; what is left out is this machine's. Raises UsageError."""
    given = arch or platform.machine()
    name = _ALIASES.get(given.lower(), given.lower())
    if name not in ARCHS:
        raise UsageError(
            f"no packages are made for the architecture '{given}'",
            hint=f"--arch {' or '.join(ARCHS)}",
        )
    if python is None:
        return Device(name, sys.version_info[:2])
    match = re.fullmatch(r"3\.(\d+)", python)
    if match is None or int(match[1]) < 11:
        raise UsageError(f"--python {python} is not supported", hint="--python 3.11 or newer")
    return Device(name, (3, int(match[1])))


def glibc_of(wheel_name: str) -> tuple[int, int] | None:
    """The oldest glibc a wheel runs with, from its file name; None for pure Python."""
    tags = wheel_name.removesuffix(".whl").rpartition("-")[2].split(".")
    found = []
    for tag in tags:
        legacy = next((v for n, v in _LEGACY.items() if tag.startswith(f"{n}_")), None)
        numbered = re.match(r"manylinux_(\d+)_(\d+)_", tag)
        if legacy:
            found.append(legacy)
        elif numbered:
            found.append((int(numbered[1]), int(numbered[2])))
    return min(found, default=None)
