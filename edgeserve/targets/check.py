"""What is wrong with a target's TOML file: everything at once, for whoever writes one.

Loading a target stops at the first mistake (`edgeserve.targets`); this says all of them, and what is
valid but will not do what its writer hopes.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgeserve.devices.cpu import ARM_FEATURES, X86_FEATURES
from edgeserve.errors import TargetError, did_you_mean
from edgeserve.targets.schema import (
    Target,
    misfits,
    mistakes,
    parse_document,
    read_bytes,
    take_unknown_fields,
    target_file,
)

# Values of platform.machine() on systems that have a runtime: Linux, Windows and macOS.
ARCHITECTURES: Final = ("x86_64", "AMD64", "aarch64", "arm64", "armv7l", "riscv64")
_SOURCES: Final = ("://", "url above", "measured by")


class FileFinding(msgspec.Struct, frozen=True):
    """One remark. An error keeps the file from being loaded, a warning does not."""

    level: Literal["error", "warning"]
    text: str
    hint: str | None = None


class FileCheck(msgspec.Struct, frozen=True):
    """The remarks on one file; `target` is None where the file does not describe one."""

    file: str
    target: str | None
    valid: bool
    findings: tuple[FileFinding, ...]


def check_file(file: Path, runtimes: Collection[str]) -> FileCheck:
    """Check one TOML; `runtimes` are the adapters there are.

    Raises TargetError where the file does not exist or cannot be read.
    """
    data = read_bytes(file, str(file))
    target, errors = _load(data, file.name)
    warnings = [] if target is None else _warnings(target, file, data, runtimes)
    return FileCheck(
        file=str(file),
        target=target.name if target else None,
        valid=not errors,
        findings=(*errors, *warnings),
    )


def _load(data: bytes, where: str) -> tuple[Target | None, list[FileFinding]]:
    """The target, None where there is none, and every error; unknown fields do not hide others."""
    try:
        document = parse_document(data, where)
    except TargetError as error:
        return None, [_error(error)]
    errors = [
        FileFinding("error", f"unknown field `{field}`", hint)
        for field, hint in take_unknown_fields(document)
    ]
    name = document.get("name")
    if isinstance(name, str) and where != f"{name}.toml":
        hint = f"call the file {name}.toml: targets are found by their file's name"
        errors.append(
            FileFinding("error", f"the target is called '{name}', the file {where}", hint)
        )
    if misfitting := misfits(document):
        return None, [*errors, *(FileFinding("error", *found) for found in misfitting)]
    target = msgspec.convert(document, Target)
    errors += [FileFinding("error", *found) for found in mistakes(target)]
    return target, errors


def _error(error: TargetError) -> FileFinding:
    return FileFinding("error", error.cause or error.message, error.hint)


def _warnings(
    target: Target, file: Path, data: bytes, runtimes: Collection[str]
) -> list[FileFinding]:
    found: list[FileFinding] = []

    def warn(text: str, hint: str | None = None) -> None:
        found.append(FileFinding("warning", text, hint))

    for name in dict.fromkeys(e.runtime for e in target.chain):
        if name not in runtimes:
            known = f"there are {', '.join(sorted(runtimes))}; others come with packages"
            warn(
                f"no runtime adapter is called {name}", did_you_mean(name, runtimes, None) or known
            )
    for feature in (f for choice in target.cpu_features for f in choice.split("|")):
        if feature not in X86_FEATURES + ARM_FEATURES:
            known = f"known: {', '.join(X86_FEATURES + ARM_FEATURES)}"
            warn(
                f"edgeserve never reports the CPU feature {feature}: no machine satisfies it",
                did_you_mean(feature, X86_FEATURES + ARM_FEATURES, None) or known,
            )
    for arch in target.arch:
        if arch.lower() not in {a.lower() for a in ARCHITECTURES}:
            hint = did_you_mean(arch, ARCHITECTURES, None) or f"usual: {', '.join(ARCHITECTURES)}"
            warn(f"platform.machine() is not known to return {arch}", hint)
    if target.chain[-1].device != "cpu":
        warn(
            "the chain does not end on a CPU: nothing serves when the device is lost",
            'add a last [[chain]] with device = "cpu"',
        )
    installed = target_file(target.name)
    # An installed file may be checked itself.
    if installed is not None and not _same(installed, file):
        warn(
            f"a target called {target.name} is installed",
            "it works as a file; a package cannot bring a second target of this name",
        )
    if not _cites_sources(data):
        warn(
            "no comment gives a source",
            "put the source above each fact: # https://... (what it says)",
        )
    return found


def _cites_sources(data: bytes) -> bool:
    lines = data.decode("utf-8", errors="replace").splitlines()
    comments = [line for line in lines if line.lstrip().startswith("#")]
    return any(source in line for line in comments for source in _SOURCES)


def _same(installed: Traversable, file: Path) -> bool:
    return isinstance(installed, Path) and installed.resolve() == file.resolve()
