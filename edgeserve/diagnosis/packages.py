"""The engines' packages in this environment: versions, and those that get in each other's way.

Read from the packages' own records; nothing is imported, since a clash may show in a crash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.diagnosis.findings import DoctorFinding

# Everything that runs models here or that engines stand on.
_ENGINES: Final = ("openvino", "openvino-genai", "ai-edge-litert", "tflite-runtime", "numpy")
_ONNXRUNTIME: Final = "onnxruntime"
_CPU_BUILD: Final = "onnxruntime"
_MODULE_FILE: Final = "onnxruntime/__init__.py"
_BUILD_INFO: Final = "onnxruntime/capi/build_and_package_info.py"
# Wheels of these names once were builds of onnxruntime, now they are plug-ins beside it.
_WRITER: Final = re.compile(r"^package_name = '([\w-]+)'", re.MULTILINE)


class InstalledPackage(msgspec.Struct, frozen=True):
    """One installed distribution. `brings_onnxruntime` is whether its files are the module onnxruntime."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    brings_onnxruntime: bool = False


def installed_packages(path: list[str] | None = None) -> tuple[InstalledPackage, ...]:
    """The engines' packages by name; `path` is where to look instead of sys.path."""
    found = {}
    for dist in distributions() if path is None else distributions(path=path):
        name = _name(dist)
        if name not in found and (name in _ENGINES or name.startswith(_ONNXRUNTIME)):
            found[name] = InstalledPackage(
                name,
                dist.version,
                tuple(dist.requires or ()),
                name.startswith(_ONNXRUNTIME) and _has(dist, _MODULE_FILE),
            )
    return tuple(found[name] for name in sorted(found))


def _name(dist: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", str(dist.metadata["Name"] or "")).lower()


def _has(dist: Distribution, file: str) -> bool:
    return any(str(entry) == file for entry in dist.files or ())


def onnxruntime_on_disk() -> str | None:
    """Which build the files of the module onnxruntime are from: that installed last."""
    for dist in distributions():
        if _name(dist).startswith(_ONNXRUNTIME) and _has(dist, _BUILD_INFO):
            try:
                text = Path(str(dist.locate_file(_BUILD_INFO))).read_text("utf-8")
            except OSError:
                continue
            if written := _WRITER.search(text):
                return written[1]
    return None


def package_findings(
    packages: Iterable[InstalledPackage], on_disk: str | None = None, ours: Iterable[str] = ()
) -> Iterator[DoctorFinding]:
    """What is wrong among packages. `ours` are edgeserve's own requirements, checked like the others'."""
    by_name = {p.name: p for p in packages}
    yield from _onnxruntime_clash(by_name, on_disk)
    if "tflite-runtime" in by_name and "ai-edge-litert" not in by_name:
        yield DoctorFinding(
            "warning",
            "packages",
            "only the old tflite-runtime is installed: it runs int8 about 20x slower than its successor",
            "pip uninstall -y tflite-runtime && pip install ai-edge-litert",
        )
    yield from _conflicts(by_name, ours)


def _onnxruntime_clash(
    by_name: dict[str, InstalledPackage], on_disk: str | None
) -> Iterator[DoctorFinding]:
    builds = sorted(p.name for p in by_name.values() if p.brings_onnxruntime)
    if len(builds) > 1:
        rest = [name for name in builds if name != _CPU_BUILD]
        keep = on_disk if on_disk in rest else rest[0]
        says = f" (the files there are {on_disk}'s)" if on_disk else ""
        yield DoctorFinding(
            "error",
            "packages",
            f"{' and '.join(builds)} both install the module onnxruntime and overwrite each other{says}",
            f"pip uninstall -y {' '.join(builds)} && pip install {keep}",
        )
    plug_ins = [p for p in by_name.values() if p.name.startswith("onnxruntime-ep-")]
    if plug_ins and not builds:
        yield DoctorFinding(
            "error",
            "packages",
            f"{plug_ins[0].name} is a plug-in of onnxruntime, which is not installed",
            "pip install 'onnxruntime>=1.24.4'",
        )


def _conflicts(
    by_name: dict[str, InstalledPackage], ours: Iterable[str]
) -> Iterator[DoctorFinding]:
    """Requirements of one engine's package that another installed one does not meet."""
    requirement_class = _requirement_class()
    if requirement_class is None:
        return
    wanted = [(p.name, text) for p in by_name.values() for text in p.requires]
    for owner, text in [*wanted, *(("edgeserve", text) for text in ours)]:
        requirement = requirement_class(text)
        other = by_name.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        if other is None or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if not requirement.specifier.contains(other.version, prereleases=True):
            needed = f"{requirement.name}{requirement.specifier}"
            yield DoctorFinding(
                "error",
                "packages",
                f"{owner} needs {needed}, and {other.version} is installed",
                f"pip install '{needed}'",
            )


def _requirement_class() -> Any:
    """packaging's, or the copy in pip; None where there is neither."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        try:
            from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment] # pip's copy of it
        except ImportError:
            return None
    return Requirement
