"""Targets: the hardware a model is converted for, one TOML each.

This module reads and checks TOMLs; whether a target's devices open on this machine is the business
of `edgeserve.runtimes.detect`. The format is documented in docs/targets.md.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Hashable, Iterable
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec

from edgeserve.bundle.manifest import Option, Precision
from edgeserve.errors import TargetError, nearest

ENTRY_POINT_GROUP: Final = "edgeserve.targets"
_SUFFIX: Final = ".toml"

ActivationType = Literal["uint8", "int8"]
WeightType = Literal["int8", "uint8"]
_T = TypeVar("_T", bound=Hashable)


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of target records: a misspelt field is an error, not a silent default."""


class ChainEntry(_Record, frozen=True):
    """One (runtime, device) of a target, with the precisions to consider there, best first.

    `static_shapes` says that this entry wants every dimension but the batch fixed: a model with other
    dynamic dimensions cannot be converted for it. `options` go to the runtime as they are.
    """

    runtime: Annotated[str, msgspec.Meta(min_length=1)]
    device: Annotated[str, msgspec.Meta(pattern=r"^(cpu|gpu|npu)(\.[0-9]+)?$")]
    precisions: Annotated[tuple[Precision, ...], msgspec.Meta(min_length=1)]
    static_shapes: bool = False
    options: dict[str, Option] = {}

    @property
    def label(self) -> str:
        return f"{self.runtime}/{self.device}"


class Quantization(_Record, frozen=True):
    """The int8 scheme this hardware runs fast, for quantizers that leave the choice."""

    per_channel: bool = True
    activation_type: ActivationType = "uint8"
    weight_type: WeightType = "int8"
    symmetric_activations: bool = False


class Limits(_Record, frozen=True):
    """What the hardware has. `memory_mb` is what a model with its runtime may take; None: unlimited."""

    memory_mb: Annotated[int, msgspec.Meta(gt=0)] | None = None


class Target(_Record, frozen=True):
    """Hardware to run on. `arch` lists values of `platform.machine()` where it can be satisfied.

    Devices of a `convert_only` target open its models with software of their own: bundles for it are
    made here, `edgeserve run` never picks it. `notes` are for people, `url` is the vendor's page.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: Annotated[str, msgspec.Meta(min_length=1)]
    arch: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    chain: Annotated[tuple[ChainEntry, ...], msgspec.Meta(min_length=1)]
    quantization: Quantization = Quantization()
    limits: Limits = Limits()
    convert_only: bool = False
    url: str | None = None
    notes: str | None = None

    def runs_on(self, arch: str) -> bool:
        """Whether `arch`, a value of `platform.machine()`, is one of this target's."""
        return arch.lower() in {a.lower() for a in self.arch}


def load_target(name_or_path: str | Path) -> Target:
    """The target called so, or the one in the TOML file at this path.

    Raises TargetError: unknown name, unreadable file, or a TOML that does not fit the schema.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(_SUFFIX) or "/" in text or "\\" in text:
        return _read(Path(name_or_path), text)
    files = _target_files()
    if text not in files:
        guess = nearest(text.lower(), files)
        known = f"known targets: {', '.join(files)}"
        raise TargetError(
            f"unknown target '{text}'",
            hint=f"did you mean '{guess}'? {known}" if guess else f"{known}, or a path to a .toml",
        )
    target = _read(files[text], str(files[text]))
    if target.name != text:
        raise TargetError(
            f"{files[text]}: name is '{target.name}'",
            cause=f"a target's file is called by its name, and this one is {text}{_SUFFIX}",
        )
    return target


def target_names() -> tuple[str, ...]:
    """The names of all installed targets, sorted. Raises TargetError when two share a name."""
    return tuple(_target_files())


def all_targets() -> tuple[Target, ...]:
    """All installed targets by name. Raises TargetError."""
    return tuple(load_target(name) for name in target_names())


def parse_target(data: bytes, where: str) -> Target:
    """Parse and check a target TOML; `where` names it in errors. Raises nothing but TargetError."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        cause = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise TargetError(f"{where} is not TOML", cause=cause) from None
    try:
        target = msgspec.convert(document, Target)
    except msgspec.ValidationError as error:
        raise TargetError(
            f"{where} is not a valid target", cause=str(error), hint=_hint(str(error))
        ) from None
    _check(target, where)
    return target


def _check(target: Target, where: str) -> None:
    """What types alone cannot say: nothing is listed twice."""
    for entry in target.chain:
        if repeated := _repeated(entry.precisions):
            raise TargetError(
                f"{where} is not a valid target",
                cause=f"precisions of {entry.label} list {repeated} twice",
            )
    pairs = [(e.runtime, e.device, str(e.options.get("provider", ""))) for e in target.chain]
    if repeated_pair := _repeated(pairs):
        raise TargetError(
            f"{where} is not a valid target",
            cause=f"the chain lists {'/'.join(filter(None, repeated_pair))} twice",
            hint="put all precisions of a device into one entry",
        )


def _repeated(items: Iterable[_T]) -> _T | None:
    return next((item for item, count in Counter(items).items() if count > 1), None)


def _hint(message: str) -> str | None:
    """What msgspec's message leaves out: the values or fields that would have been right."""
    *_, path = message.rpartition(" - at `$")
    keys = re.findall(r"\w+", path)
    if "Invalid enum value" in message:
        field = next((key for key in reversed(keys) if key in _CHOICES), None)
        return f"known: {', '.join(_CHOICES[field])}" if field else None
    if "matching regex" in message:
        return _PATTERNS.get(keys[-1]) if keys else None
    unknown = re.search(r"unknown field `(.*?)`", message)
    if unknown is None:
        return None
    fields = _FIELDS.get(keys[0] if keys else "", _FIELDS[""])
    guess = nearest(unknown[1], fields)
    return f"did you mean '{guess}'?" if guess else f"known fields: {', '.join(fields)}"


_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "precisions": get_args(Precision),
    "activation_type": get_args(ActivationType),
    "weight_type": get_args(WeightType),
}
_PATTERNS: Final[dict[str, str]] = {
    "device": "cpu, gpu or npu; with an index where there are several: gpu.1",
    "name": "lower-case letters, digits, '-', '_' and '.'",
}
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "": Target.__struct_fields__,
    "chain": ChainEntry.__struct_fields__,
    "quantization": Quantization.__struct_fields__,
    "limits": Limits.__struct_fields__,
}


def _read(file: Path | Traversable, where: str) -> Target:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise TargetError(
            f"{where} does not exist",
            hint=f"a path to a {_SUFFIX}, or a name `edgeserve targets` lists",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise TargetError(f"{where} cannot be read", cause=str(error)) from None
    return parse_target(data, where)


def _target_files() -> dict[str, Traversable]:
    """All installed target files by target name, sorted. Raises TargetError for a name given twice."""
    files: dict[str, Traversable] = {}
    for folder in _folders():
        for file in sorted(folder.iterdir(), key=lambda f: f.name):
            name = file.name.removesuffix(_SUFFIX)
            if name == file.name or name.startswith("."):
                continue
            if name in files:
                raise TargetError(
                    f"two targets are called '{name}'",
                    cause=f"{files[name]} and {file}",
                    hint="rename one, or uninstall the package that brings it",
                )
            files[name] = file
    return dict(sorted(files.items()))


def _folders() -> list[Traversable]:
    """The shipped folder, then those of the entry points of group `edgeserve.targets`."""
    entries = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    return [_shipped_folder(), *map(_plugin_folder, entries)]


def _shipped_folder() -> Path:
    package = Path(__file__).parent
    in_wheel, in_checkout = package / "_targets", package.parent / "targets"
    if in_wheel.is_dir():
        return in_wheel
    # Not any folder of this name: beside an installed package `targets` may be anybody's.
    if in_checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return in_checkout
    raise TargetError(
        "edgeserve's own targets are missing",
        cause=f"neither {in_wheel} nor {in_checkout} exists",
        hint="install edgeserve again",
    )


def _plugin_folder(entry: EntryPoint) -> Traversable:
    package = entry.dist.name if entry.dist else entry.value
    try:
        found: Any = entry.load()
        folder = found() if callable(found) else found
        if not isinstance(folder, Traversable):
            raise TypeError(f"expected a folder (Path, Traversable), got {type(folder).__name__}")
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder")
    except Exception as error:  # a plug-in's code may raise anything
        raise TargetError(
            f"the targets of package {package} cannot be loaded",
            cause=f"entry point {entry.name} = {entry.value}: {error}",
            hint=f"pip uninstall {package}, or ask its authors",
        ) from error
    return folder
