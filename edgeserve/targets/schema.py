"""Targets: the hardware a model is converted for, one TOML each.

This module reads and checks TOMLs; whether a target's devices open on this machine is the business
of `edgeserve.runtimes.detect`. The format is documented in docs/targets.md.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec

from edgeserve.bundle.manifest import Option, Precision
from edgeserve.errors import TargetError, did_you_mean, nearest

ENTRY_POINT_GROUP: Final = "edgeserve.targets"
_SUFFIX: Final = ".toml"

ActivationType = Literal["uint8", "int8", "uint16", "int16"]
WeightType = Literal["int8", "uint8"]
# What a network is made of: convolutions, or products of matrices (`ModelFacts.convolves`).
Networks = Literal["any", "convolutional", "matmul"]
# One feature, or several of which one is enough: `avx512_vnni|avx_vnni`.
CpuFeature = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]+(\|[a-z0-9_]+)*$")]
# Words of `edgeserve targets` and `--target`.
RESERVED_NAMES: Final = ("auto", "check", "list")
_T = TypeVar("_T", bound=Hashable)


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of target records: a misspelt field is an error, not a silent default."""


class ChainEntry(_Record, frozen=True):
    """One (runtime, device) of a target, with the precisions to consider there, best first.

    `static_shapes` says that this entry wants every dimension but the batch fixed: a model with other
    dynamic dimensions cannot be converted for it. `options` go to the runtime as they are.
    An `optional` entry is one runtime more than the target needs: it is tried where it is installed and its
    speed can be measured, on the `networks` named, and kept where it is clearly the fastest.
    """

    runtime: Annotated[str, msgspec.Meta(min_length=1)]
    device: Annotated[str, msgspec.Meta(pattern=r"^(cpu|gpu|npu)(\.[0-9]+)?$")]
    precisions: Annotated[tuple[Precision, ...], msgspec.Meta(min_length=1)]
    static_shapes: bool = False
    options: dict[str, Option] = {}
    optional: bool = False
    networks: Networks = "any"

    @property
    def label(self) -> str:
        return f"{self.runtime}/{self.device}"


class Quantization(_Record, frozen=True):
    """The int8 scheme this hardware runs fast, for quantizers that leave the choice.

    `per_channel_matmul` is False for hardware that takes scales per channel of convolutions alone (LiteRT
    files). `reduce_range` gives weights 7 of 8 bits, for CPUs whose int8 sums saturate. `full_integer` says
    that the device takes integers only: inputs, outputs and every operator.
    """

    per_channel: bool = True
    activation_type: ActivationType = "uint8"
    weight_type: WeightType = "int8"
    symmetric_activations: bool = False
    reduce_range: bool = False
    full_integer: bool = False
    per_channel_matmul: bool = True


class TargetLimits(_Record, frozen=True):
    """What the hardware has. `memory_mb` is what a model with its runtime may take; None: unlimited."""

    memory_mb: Annotated[int, msgspec.Meta(gt=0)] | None = None


class Target(_Record, frozen=True):
    """Hardware to run on. `arch` lists values of `platform.machine()` where it can be satisfied.

    `cpu_features` must all be there, each named as in /proc/cpuinfo or as alternatives `a|b`; `cpus`
    lists the CPUs it can be, as `devices.Machine.cpu` names them, any when empty.
    Devices of a `convert_only` target open its models with software of their own: bundles for it are
    made here, `edgeserve run` never picks it. `unverified` says what nobody could verify where the
    target was written. `notes` are for people, `url` is the vendor's page.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: Annotated[str, msgspec.Meta(min_length=1)]
    arch: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    chain: Annotated[tuple[ChainEntry, ...], msgspec.Meta(min_length=1)]
    quantization: Quantization = Quantization()
    limits: TargetLimits = TargetLimits()
    cpu_features: tuple[CpuFeature, ...] = ()
    cpus: tuple[str, ...] = ()
    convert_only: bool = False
    unverified: Annotated[str, msgspec.Meta(min_length=1)] | None = None
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
            cause=f"a target's file must have the target's name; this one is {text}{_SUFFIX}",
        )
    return target


def target_names() -> tuple[str, ...]:
    """The names of all installed targets, sorted. Raises TargetError when two share a name."""
    return tuple(_target_files())


def target_file(name: str) -> Traversable | None:
    """The file of the installed target called so. Raises TargetError when two share a name."""
    return _target_files().get(name)


def all_targets() -> tuple[Target, ...]:
    """All installed targets by name. Raises TargetError."""
    return tuple(load_target(name) for name in target_names())


def parse_target(data: bytes, where: str) -> Target:
    """Parse and check a target TOML; `where` names it in errors. Raises nothing but TargetError."""
    return target_of(parse_document(data, where), where)


def parse_document(data: bytes, where: str) -> dict[str, Any]:
    """The TOML as plain values, not checked against the schema. Raises TargetError."""
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        cause = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise TargetError(f"{where} is not TOML", cause=cause) from None


def target_of(document: dict[str, Any], where: str) -> Target:
    """The target a TOML describes. Raises TargetError for the first thing that does not fit."""
    try:
        target = msgspec.convert(document, Target)
    except msgspec.ValidationError as error:
        raise _invalid(where, str(error), _hint(str(error))) from None
    for cause, hint in mistakes(target):
        raise _invalid(where, cause, hint)
    return target


def take_unknown_fields(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Remove the fields that the schema does not know; each with the hint for its writer."""
    chain = document.get("chain")
    tables: list[tuple[str, Any]] = [("", document)]
    tables += [(f"chain[{i}].", t) for i, t in enumerate(chain if isinstance(chain, list) else [])]
    tables += [(f"{key}.", document.get(key)) for key in ("quantization", "limits")]
    found: list[tuple[str, str]] = []
    for prefix, table in tables:
        if not isinstance(table, dict):
            continue
        for name in [n for n in table if n not in _fields_of(prefix)]:
            del table[name]
            found.append((prefix + name, _field_hint(name, _fields_of(prefix))))
    return found


def misfits(document: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Everything that does not fit the schema, what is missing included; each with a hint, if there is one."""
    chain = document.get("chain")
    entries = chain if isinstance(chain, list) else []
    tables: list[tuple[str, type, Any]] = [("", Target, document)]
    tables += [(f".chain[{i}]", ChainEntry, table) for i, table in enumerate(entries)]
    tables += [
        (f".{key}", kind, document[key])
        for key, kind in (("quantization", Quantization), ("limits", TargetLimits))
        if key in document
    ]
    found: list[tuple[str, str | None]] = []
    for path, kind, table in tables:
        if not isinstance(table, dict):
            found.append((f"Expected a table - at `${path}`", None))
            continue
        for field in msgspec.structs.fields(kind):
            at = f"{path}.{field.name}"
            if field.name not in table:
                if field.required:
                    found.append((f"missing required field - at `${at}`", None))
            elif at in (".quantization", ".limits") or (at == ".chain" and entries):
                continue  # tables of their own
            else:
                found += _misfit(table[field.name], field.type, at)
    return found


def _misfit(value: Any, kind: Any, at: str) -> list[tuple[str, str | None]]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said, _, inside = str(error).partition(" - at `$")
        text = f"{said} - at `${at}{inside.removesuffix('`')}`"
        return [(text, _hint(text))]
    return []


def mistakes(target: Target) -> Iterator[tuple[str, str | None]]:
    """What types alone cannot say, each with a hint, if there is one."""
    if target.name in RESERVED_NAMES:
        yield f"'{target.name}' is reserved by the command line", "rename the target"
    if target.convert_only and target.unverified is None:
        yield (
            "a convert_only target must state in `unverified` what could not be verified",
            'unverified = "Nothing was run on the device."',
        )
    if target.chain[0].optional:
        yield "the first chain entry cannot be optional", None
    for entry in target.chain:
        if repeated := _repeated(entry.precisions):
            yield f"precisions of {entry.label} list {repeated} twice", None
    pairs = [(e.runtime, e.device, str(e.options.get("provider", ""))) for e in target.chain]
    if repeated_pair := _repeated(pairs):
        yield (
            f"the chain lists {'/'.join(filter(None, repeated_pair))} twice",
            "put all precisions of a device into one entry",
        )


def _invalid(where: str, cause: str, hint: str | None = None) -> TargetError:
    return TargetError(f"{where} is not a valid target", cause=cause, hint=hint)


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
        return next((_PATTERNS[key] for key in reversed(keys) if key in _PATTERNS), None)
    unknown = re.search(r"unknown field `(.*?)`", message)
    if unknown is None:
        return None
    return _field_hint(unknown[1], _fields_of(keys[0] if keys else ""))


def _field_hint(name: str, fields: tuple[str, ...]) -> str:
    return did_you_mean(name, fields, f"known fields: {', '.join(fields)}")


def _fields_of(path: str) -> tuple[str, ...]:
    """The fields of the table at a path: `chain[0].`, `limits`, or the document itself."""
    return _FIELDS.get(re.split(r"\W", path)[0], _FIELDS[""])


_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "precisions": get_args(Precision),
    "activation_type": get_args(ActivationType),
    "weight_type": get_args(WeightType),
    "networks": get_args(Networks),
}
_PATTERNS: Final[dict[str, str]] = {
    "device": "cpu, gpu or npu; with an index where there are several: gpu.1",
    "name": "lower-case letters, digits, '-', '_' and '.'",
    "cpu_features": "names as in /proc/cpuinfo; alternatives as avx512_vnni|avx_vnni",
}
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "": Target.__struct_fields__,
    "chain": ChainEntry.__struct_fields__,
    "quantization": Quantization.__struct_fields__,
    "limits": TargetLimits.__struct_fields__,
}


def _read(file: Path | Traversable, where: str) -> Target:
    return parse_target(read_bytes(file, where), where)


def read_bytes(file: Path | Traversable, where: str) -> bytes:
    """The bytes of a target's file. Raises TargetError."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise TargetError(
            f"{where} does not exist",
            hint=f"a path to a {_SUFFIX}, or a name `edgeserve targets` lists",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise TargetError(f"{where} cannot be read", cause=str(error)) from None


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
    package = Path(__file__).parents[1]
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
