"""What the declaration of a setting says, and the checks that follow from it. Imports nothing heavy: `run --help` reads it.

A setting is one field of a struct: `name: Annotated[type, Setting(...)] = default`. Its flag, its key in `serve.toml`,
its row in docs, its bounds and its name in Triton's config.pbtxt are derived from that.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from edgeserve.errors import UsageError

_T = TypeVar("_T", bound=msgspec.Struct)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?")


class Group(StrEnum):
    """The sections of `run --help` and of the docs, in their order."""

    WHAT = "What to serve"
    LISTENING = "Listening"
    DEVICES = "Devices and fallback"
    BATCHING = "Batching and queues"
    LIMITS = "Limits and access"
    OPERATIONS = "Operations"


class Unit(StrEnum):
    """What a value is. SIZE is a number of bytes or a text such as "2GB", PATH is relative to its file."""

    NUMBER = "number"
    SECONDS = "number of seconds"
    BYTES = "number of bytes"
    PORT = "port"
    SIZE = "size"
    PATH = "path"


_VALUES: Final = {Unit.SECONDS: "SECONDS", Unit.BYTES: "BYTES", Unit.SIZE: "SIZE"}


class Setting(msgspec.Struct, frozen=True):
    """`help` is one line; `more` is Markdown that only the docs have. `default` names the default where its
    value does not. `ge`, `gt` and `le` bound a number, or each of several; `pattern` a text, with `expected`
    in words.

    `flag` is what `run` calls it (empty: by its name; None: it is set in the file only), `env` an environment
    variable, `pbtxt` a field of config.pbtxt. A running server follows changes of settings about models, and
    of others only if `followed`.
    """

    group: Group
    help: str
    unit: Unit = Unit.NUMBER
    more: str = ""
    default: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    pattern: str | None = None
    expected: str = ""
    flag: str | None = ""
    metavar: str | None = None
    env: str | None = None
    pbtxt: str | None = None
    followed: bool = False

    @property
    def value_name(self) -> str | None:
        """What help and docs call the value, if not by its type."""
        return self.metavar or _VALUES.get(self.unit)

    @property
    def range(self) -> str:
        """The bounds in words."""
        if self.ge is not None and self.le is not None:
            return f"{self.ge:g} to {self.le:g}"
        return f"more than {self.gt:g}" if self.gt is not None else f"{self.ge:g} or more"

    def problem(self, name: str, value: object) -> str | None:
        """Why one value cannot be used, if so."""
        if self.unit is Unit.SIZE and isinstance(value, int | str):
            size_bytes(value, name)
        if self.pattern is not None and isinstance(value, str):
            fits = re.fullmatch(self.pattern, value) is not None
            return None if fits else f"{name} '{value}' is not valid: expected {self.expected}"
        if isinstance(value, bool) or not isinstance(value, int | float) or self._holds(value):
            return None
        return f"{name} {value} is not a valid {self.unit}: expected {self.range}"

    def _holds(self, value: float) -> bool:
        if self.ge is None and self.gt is None:
            return True
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
        )


class Declared(msgspec.Struct, frozen=True):
    """One setting: a field of a struct with its declaration."""

    name: str
    type: Any
    default: Any
    setting: Setting

    @property
    def parts(self) -> tuple[Any, ...]:
        """The types that a value may have, without None."""
        union = get_args(self.type) if get_origin(self.type) in (Union, UnionType) else ()
        return tuple(t for t in union or (self.type,) if t is not type(None))

    @property
    def choices(self) -> tuple[str, ...]:
        """What a value must be one of; empty: anything."""
        return get_args(self.parts[0]) if get_origin(self.parts[0]) is Literal else ()

    @property
    def shown_default(self) -> str:
        """The default in help and docs; empty for what is off or absent by default."""
        if self.setting.default or isinstance(self.default, bool | tuple | msgspec.Struct | None):
            return self.setting.default
        if isinstance(self.default, str):
            return self.default
        amount, name = self.default, ""
        if self.setting.unit is Unit.BYTES:
            for larger in (" KiB", " MiB", " GiB"):
                if amount and amount % 1024 == 0:
                    amount, name = amount // 1024, larger
        return f"{amount:.10g}{name}"


@cache
def declared(kind: type[msgspec.Struct]) -> Mapping[str, Declared]:
    """The settings of a struct by name: its own, then those of its bases."""
    fields = {f.name: f for f in msgspec.structs.fields(kind)}
    own = [n for base in kind.__mro__ for n in inspect.get_annotations(base)]
    return {
        name: Declared(name, fields[name].type.__origin__, fields[name].default, setting)
        for name in own
        if name in fields
        for setting in getattr(fields[name].type, "__metadata__", ())
        if isinstance(setting, Setting)
    }


def check(
    values: msgspec.Struct, prefix: str = "", kind: type[msgspec.Struct] | None = None
) -> None:
    """Raise UsageError for the first value out of its bounds. `kind` declares them (None: the values' own)."""
    for name, known in declared(kind or type(values)).items():
        value = getattr(values, name)
        for each in value if isinstance(value, tuple) else (value,):
            problem = known.setting.problem(prefix + name, each)
            if problem is not None:
                raise UsageError(problem)


def table(kind: type[_T]) -> type[_T]:
    """The same struct, as a table of a file that says only what differs: settings left out are UNSET."""
    settings = declared(kind)
    own = [
        (f.name, f.type) if f.default is msgspec.NODEFAULT else (f.name, f.type, f.default)
        for f in msgspec.structs.fields(kind)
        if f.name not in settings
    ]
    optional = [
        (f.name, f.type | UnsetType, UNSET)
        for f in msgspec.structs.fields(kind)
        if f.name in settings
    ]
    made: Any = msgspec.defstruct(
        kind.__name__,
        [*own, *optional],
        module=kind.__module__,
        namespace={"__doc__": kind.__doc__},
        frozen=True,
        forbid_unknown_fields=True,
        omit_defaults=True,
    )
    return made  # type: ignore[no-any-return]


def said(values: msgspec.Struct) -> dict[str, Any]:
    """The settings that a table does not leave out."""
    given = msgspec.structs.asdict(values)
    return {name: value for name, value in given.items() if value is not UNSET}


def taken(kind: type[_T], settings: msgspec.Struct, **own: Any) -> _T:
    """A struct whose fields are settings of the same names (`timeout_s` is `timeout`), and `own`."""
    given = {}
    for field in kind.__struct_fields__:
        for name in (field, field.removesuffix("_s")):
            if name in settings.__struct_fields__:
                given[field] = getattr(settings, name)
                break
    return kind(**(given | own))


def size_bytes(value: int | str, key: str) -> int:
    """A size in bytes: a number, or a text like "500MB" or "2GiB". Raises UsageError."""
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise UsageError(f"{key} '{value}' is not a valid size", hint="like 500MB, 2GB or 2GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kMGT".index(match[2].replace("K", "k") or " "))
