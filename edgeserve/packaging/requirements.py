"""What must be installed on the device: edgeserve's own requirements, and the engines of the chain."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import Distribution, distribution, distributions, entry_points
from typing import TYPE_CHECKING, Final

from edgeserve.bundle import Candidate
from edgeserve.errors import DependencyMissing, UsageError
from edgeserve.runtimes import runtime, runtime_names

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from edgeserve.packaging.device import Device

# Builds of onnxruntime with one accelerator each. All write the module `onnxruntime`, so that only one
# of them may be installed: https://github.com/microsoft/onnxruntime/issues/26996
_ONNXRUNTIME_BUILDS: Final = {
    "CUDAExecutionProvider": "onnxruntime-gpu>=1.20",
    "TensorrtExecutionProvider": "onnxruntime-gpu>=1.20",
    "WebGpuExecutionProvider": "onnxruntime-webgpu>=1.20",
    "QNNExecutionProvider": "onnxruntime-qnn>=1.20",
}


def parse(text: str) -> Requirement:
    """A requirement as pip reads it (PEP 508)."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        raise DependencyMissing("packaging", needed_for="edgeserve package") from None
    return Requirement(text)


def canonical(name: str) -> str:
    """A distribution's name as indexes and wheels compare it (PEP 503)."""
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def requirements(
    chain: Sequence[Candidate], device: Device, extras: Sequence[str] = ()
) -> list[str]:
    """The pip requirements of a device that serves `chain`, edgeserve itself not among them; `extras`
    are those of edgeserve that it needs."""
    engines = {
        canonical(parse(text).name) for name in runtime_names() for text in runtime(name).requires
    }
    environments = [device.markers() | {"extra": extra} for extra in ("", *extras)]
    own = [parse(text) for text in distribution("edgeserve").requires or []]
    base = [
        _plain(r)
        for r in own
        if canonical(r.name) not in engines
        and (r.marker is None or any(r.marker.evaluate(m) for m in environments))
    ]
    used = _engines(chain)
    return sorted(base) + [_plain(parse(text)) for text in used] + _adapters(chain)


def _plain(requirement: Requirement) -> str:
    """Without its marker, which pip would evaluate for the machine it runs on."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _engines(chain: Sequence[Candidate]) -> list[str]:
    found = dict.fromkeys(
        text for c in chain for text in runtime(c.runtime).requires if c.runtime != "onnxruntime"
    )
    providers = [str(c.options.get("provider", "")) for c in chain if c.runtime == "onnxruntime"]
    builds = {_ONNXRUNTIME_BUILDS[p] for p in providers if p in _ONNXRUNTIME_BUILDS}
    if len(builds) > 1:
        raise UsageError(
            f"the chain needs two builds of onnxruntime: {' and '.join(sorted(builds))}",
            cause="they overwrite each other when both are installed",
            hint="package one of them: --variant, or edit the target's chain",
        )
    if builds:
        found[builds.pop()] = None
    elif providers:
        found.update(dict.fromkeys(runtime("onnxruntime").requires))
    return list(found)


def _adapters(chain: Sequence[Candidate]) -> list[str]:
    """The distributions of runtimes that are somebody else's plug-ins."""
    names = {c.runtime for c in chain}
    found: dict[str, None] = {}
    for entry in entry_points(group="edgeserve.runtimes"):
        if entry.name in names and entry.dist and canonical(entry.dist.name) != "edgeserve":
            found[f"{entry.dist.name}=={entry.dist.version}"] = None
    return list(found)


def constraints() -> list[str]:
    """The versions installed here, which are those the bundle was measured with."""
    lines = set()
    for dist in distributions():
        if not _is_local(dist):
            lines.add(f"{dist.name}=={dist.version}")
    return sorted(lines)


def _is_local(dist: Distribution) -> bool:
    """Whether no index has it: installed from a folder, or a build of somebody's own (`1.0+cpu`)."""
    return "+" in dist.version or dist.read_text("direct_url.json") is not None
