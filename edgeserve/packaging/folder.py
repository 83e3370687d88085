"""The folder form of a device package: bundle, wheelhouse, installer, configuration, service."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle import Bundle, Candidate
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.writing import FolderKind, check_destination, folder_writer
from edgeserve.errors import UsageError
from edgeserve.packaging.device import Device, device, glibc_of
from edgeserve.packaging.reduce import chosen_chain, write_reduced
from edgeserve.packaging.requirements import requirements
from edgeserve.packaging.wheels import (
    fill,
    fill_pip,
    name_and_version,
    own_wheel,
    unpacked_bytes,
)
from edgeserve.progress import Say

_KIND: Final = FolderKind("package", "package.json")
# Wheels of pure Python run with any glibc; this is the oldest that CPython 3.11 is built with.
_OLDEST_GLIBC: Final = (2, 17)
# What a service manager waits before it kills: 30 s of draining, 15 s for models and workers to close, and room for
# up to 15 s of lame_duck.
_STOP_S: Final = 60


class PackageOptions(msgspec.Struct, frozen=True):
    """What `package` is asked for; the command line's flags, one to one."""

    arch: str | None = None
    python: str | None = None
    runtimes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    keep_all: bool = False
    wheelhouse: str | None = None
    host: str = "localhost"
    http_port: int = 8000
    grpc_port: int | None = None
    insecure: bool = False
    force: bool = False


class PackagePart(msgspec.Struct, frozen=True):
    """One part of a package: what it weighs in the package, and installed on the device."""

    name: str
    version: str | None
    packed_bytes: int
    installed_bytes: int


class DevicePackage(msgspec.Struct, frozen=True):
    """A package as it was written; `package.json` holds the same, with `.` for its path."""

    path: str
    name: str
    edgeserve: str
    arch: str
    python: str
    glibc: str
    chain: tuple[Candidate, ...]
    parts: tuple[PackagePart, ...]

    @property
    def packed_bytes(self) -> int:
        return sum(p.packed_bytes for p in self.parts)

    @property
    def installed_bytes(self) -> int:
        return sum(p.installed_bytes for p in self.parts)


def package(source: Path, destination: Path, options: PackageOptions, say: Say) -> DevicePackage:
    """Write a package of the bundle at `source` to `destination`, or nothing.

    Raises BundleError, UsageError, OutputExists, WriteFailed, EnvironmentProblem (pip's own words).
    """
    check_destination(destination, _KIND, force=options.force)
    _check_host(options)
    wheelhouse = Path(options.wheelhouse) if options.wheelhouse else None
    if wheelhouse is not None and not wheelhouse.is_dir():
        raise UsageError(f"--wheelhouse {wheelhouse} is not a folder")
    bundle = Bundle.open(source)
    chain = chosen_chain(bundle, options.runtimes, options.variants)
    target = device(options.arch, options.python)
    extras = {
        "grpc": options.grpc_port is not None,
        "images": bundle.manifest.task.preprocess is not None,  # it answers photographs
    }
    needed = requirements(chain, target, [name for name, used in extras.items() if used])
    with folder_writer(destination, _KIND, force=options.force) as (root, work):
        say("copying the bundle", None)
        travelling = root / f"{safe_name(bundle.name)}.edge"
        travelling.mkdir()
        reduced = write_reduced(bundle, chain, travelling, keep_all=options.keep_all)
        wheels, tools = root / "wheels", root / "tools"
        wheels.mkdir()
        tools.mkdir()
        fill(wheels, work, needed, target, wheelhouse, say)
        fill_pip(tools, wheelhouse, say)
        own_wheel(wheels, work, say)
        written = _describe(destination, reduced, travelling, wheels, tools, chain, target)
        say("writing the package", None)
        _write_files(root, travelling.name, written, options)
        _write_sums(root)
    return written


def _describe(
    destination: Path,
    bundle: Bundle,
    folder: Path,
    wheels: Path,
    tools: Path,
    chain: Sequence[Candidate],
    target: Device,
) -> DevicePackage:
    found = sorted(wheels.glob("*.whl"))
    glibcs = [g for g in (glibc_of(w.name) for w in found) if g is not None]
    size = bundle.size_bytes
    parts = [PackagePart(folder.name, None, size, size)]
    parts += [
        PackagePart(*name_and_version(w), w.stat().st_size, unpacked_bytes(w))
        for w in sorted(found, key=unpacked_bytes, reverse=True)
    ]
    # pip runs from its wheel and is not installed.
    parts += [PackagePart("pip (tools)", None, sum(f.stat().st_size for f in tools.iterdir()), 0)]
    return DevicePackage(
        path=str(destination),
        name=bundle.name,
        edgeserve=version("edgeserve"),
        arch=target.arch,
        python=target.python_text,
        glibc=".".join(map(str, max([*glibcs, _OLDEST_GLIBC]))),
        chain=tuple(chain),
        parts=tuple(parts),
    )


def _write_files(
    root: Path, bundle_name: str, written: DevicePackage, options: PackageOptions
) -> None:
    unit = f"edgeserve-{safe_name(written.name)}"
    values = {
        "NAME": written.name,
        "RULE": "=" * (len(written.name) + len(": a model and what serves it")),
        "MODEL": written.name,
        "UNIT": unit,
        "VERSION": written.edgeserve,
        "ARCH": written.arch,
        "PYTHON": written.python,
        "PYTHON_TUPLE": written.python.replace(".", ", "),
        "GLIBC": written.glibc,
        "BUNDLE": json.dumps(bundle_name),
        "BUNDLE_NAME": bundle_name,
        "HOST": json.dumps(options.host),
        "PORT": str(options.http_port),
        "STOP": str(_STOP_S),
        "PORT_NUMBER": str(options.http_port),
        "GRPC": "# grpc_port = 8001"
        if options.grpc_port is None
        else f"grpc_port = {options.grpc_port}",
        "INSECURE": "insecure = true" if options.insecure else "# insecure = true",
        "DEVICES": _device_rules(written.chain),
        "CHAIN": "\n".join(
            f"    {c.runtime} on {c.device}: variant {c.variant}" for c in written.chain
        ),
        "SIZES": size_lines(written),
    }
    for template, name, mode in (
        ("install.sh.in", "install.sh", 0o755),
        ("unit.service.in", f"{unit}.service", 0o644),
        ("serve.toml.in", "serve.toml", 0o644),
        ("README.txt.in", "README.txt", 0o644),
    ):
        text = (files("edgeserve.packaging") / "files" / template).read_text("utf-8")
        (root / name).write_text(_filled(text, values), "utf-8")
        (root / name).chmod(mode)
    here = msgspec.structs.replace(written, path=".")  # where it was made is nobody's business
    record = msgspec.json.format(msgspec.json.encode(here), indent=2)
    (root / _KIND.marker).write_bytes(record + b"\n")


def _filled(template: str, values: dict[str, str]) -> str:
    """`@KEY@` replaced; `@@KEY@@` is left for install.sh."""
    return re.sub(r"(?<!@)@([A-Z_]+)@(?!@)", lambda m: values[m[1]], template)


def size_lines(written: DevicePackage) -> str:
    """A plain table of the parts, in MB."""
    rows = [(p.name, p.version or "", p.packed_bytes, p.installed_bytes) for p in written.parts]
    rows.append(("all", "", written.packed_bytes, written.installed_bytes))
    return "\n".join(
        f"    {name:<28}{number:<14}{packed / 1e6:>8.1f} MB{installed / 1e6:>9.1f} MB"
        for name, number, packed, installed in rows
    )


def _device_rules(chain: Sequence[Candidate]) -> str:
    """Device files a service may open: none, unless a candidate runs on an accelerator."""
    if all(c.kind == "cpu" for c in chain):
        return "PrivateDevices=yes"
    return (
        "# Accelerators: render nodes, NPUs, NVIDIA's files.\n"
        "SupplementaryGroups=render video\n"
        "DevicePolicy=closed\n"
        "DeviceAllow=char-drm rw\n"
        "DeviceAllow=char-accel rw\n"
        "DeviceAllow=char-nvidia-frontend rw\n"
        "DeviceAllow=char-nvidia-uvm rw"
    )


def _write_sums(root: Path) -> None:
    """SHA256SUMS of every file, as sha256sum reads it."""
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    lines = [f"{file_sha256(root / p)}  {p}\n" for p in paths]
    (root / "SHA256SUMS").write_text("".join(lines), "utf-8")


def _check_host(options: PackageOptions) -> None:
    """Refuse here what the server would refuse on the device."""
    try:
        loopback = options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not options.insecure:
        raise UsageError(
            f"--host {options.host} is open to the network, and nothing protects the server",
            hint="leave it at localhost behind a proxy, or add --insecure",
        )


def safe_name(name: str) -> str:
    """A model's name as a file name, a unit name and a word in a shell script."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
