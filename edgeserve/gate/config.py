"""Where limits come from: flags, then EDGESERVE_GATE_*, then one TOML file. Each limit knows its place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edgeserve.errors import UsageError, did_you_mean
from edgeserve.gate.limits import BUDGETS, Budget, Value, parse_limit

ENVIRONMENT_PREFIX: Final = "EDGESERVE_GATE_"
# In this order; a file without a gate table is passed over.
FILES: Final = ("edgeserve.toml", "pyproject.toml")
_TABLES: Final = (("gate",), ("tool", "edgeserve", "gate"))
EXAMPLE: Final = (
    'edgeserve.toml: [gate] max_size = "5 MB", max_latency_p50 = "3 ms"; or --max-size 5MB'
)


class GateTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[gate]` as it is written. `models` holds tables of their own by model name, whose
    keys win over those beside it; `device` is where the limits hold, and must open; `against` is the source model
    that `min_speedup` is measured against, relative to the file."""

    max_size: Value | None = None
    max_bundle_size: Value | None = None
    max_latency_p50: Value | None = None
    max_latency_p99: Value | None = None
    min_speedup: Value | None = None
    max_peak_rss: Value | None = None
    max_accuracy_drop: Value | None = None
    min_accuracy: Value | None = None
    min_fidelity: Value | None = None
    min_sqnr_db: Value | None = None
    min_cosine: Value | None = None
    min_on_device: Value | None = None
    device: str | None = None
    against: str | None = None
    models: dict[str, GateTable] = {}


class Limit(msgspec.Struct, frozen=True):
    """A limit and the place where it can be changed: a key in a file, a flag, a variable."""

    budget: Budget
    value: float
    where: str


class Config(msgspec.Struct, frozen=True):
    """All that was configured; limits in the order of `BUDGETS`. `device_where` is where `device` is set."""

    limits: tuple[Limit, ...]
    device: str | None = None
    device_where: str | None = None
    against: Path | None = None
    file: Path | None = None

    def has(self, *keys: str) -> bool:
        return any(limit.budget.key in keys for limit in self.limits)


def load_config(
    model: str,
    *,
    folder: Path,
    file: Path | None = None,
    flags: Mapping[str, Value | None] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The limits for `model` from `file`, or from the first of FILES in `folder` that has a gate table.

    `flags` are by key. Raises UsageError: unreadable file, unknown key, a limit that is none, no limit
    at all.
    """
    found: dict[str, _Setting] = {}
    written = _written(folder, file)
    if written is not None:
        found |= written.settings("")
        found |= written.settings(model)
    found |= _variables(environ or {})
    for key, value in (flags or {}).items():
        if value is not None:
            found[key] = _Setting(value, "--" + key.replace("_", "-"), folder)
    limits = tuple(
        Limit(budget, parse_limit(budget, found[key].value, found[key].where), found[key].where)
        for key, budget in BUDGETS.items()
        if key in found
    )
    if not limits and "device" not in found:
        cause = f"no {' or '.join(FILES)} here has a gate table"
        raise UsageError(
            "no limits are set",
            cause=f"{written.path} sets none" if written else cause,
            hint=EXAMPLE,
        )
    device, against = found.get("device"), found.get("against")
    return Config(
        limits,
        device=str(device.value) if device else None,
        device_where=device.where if device else None,
        against=against.folder / str(against.value) if against else None,
        file=written.path if written else None,
    )


class _Setting(NamedTuple):
    """A value, the place where it is set, and the folder that paths in it start from."""

    value: Value
    where: str
    folder: Path


class _Written(NamedTuple):
    """A gate table, the file it is in, and its name there."""

    path: Path
    name: str
    table: GateTable

    def settings(self, model: str) -> dict[str, _Setting]:
        """What the table sets; for a model's name what the model's own table does."""
        table = self.table.models.get(model, GateTable()) if model else self.table
        name = f"{self.name}.models.{model}" if model else self.name
        return {
            key: _Setting(value, f"{self.path.name} [{name}] {key}", self.path.parent)
            for key in _KEYS
            if (value := getattr(table, key)) is not None
        }


def read_table(data: bytes, where: str) -> tuple[str, GateTable] | None:
    """The name and content of a TOML file's gate table, None where it has none. Raises UsageError, and
    nothing else."""
    try:
        document: Any = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        cause = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{where} is not TOML", cause=cause) from None
    for keys in _TABLES:
        table = document
        for key in keys:
            table = table.get(key) if isinstance(table, dict) else None
        if table is None:
            continue
        name = ".".join(keys)
        try:
            return name, msgspec.convert(table, GateTable)
        except msgspec.ValidationError as error:
            raise UsageError(
                f"{where} [{name}] is wrong", cause=str(error), hint=_hint(str(error))
            ) from None
    return None


def _written(folder: Path, file: Path | None) -> _Written | None:
    for path in [file] if file else [folder / name for name in FILES]:
        try:
            data = path.read_bytes()
        except OSError as error:
            if file is None:
                continue
            raise UsageError(f"{file} cannot be read", cause=error.strerror) from None
        found = read_table(data, str(path) if file else path.name)
        if found is not None:
            return _Written(path, *found)
    if file is not None:
        raise UsageError(f"{file} has no gate table", hint=EXAMPLE)
    return None


def _variables(environ: Mapping[str, str]) -> dict[str, _Setting]:
    """What EDGESERVE_GATE_* set. Raises UsageError for one that is not a key."""
    found = {}
    for name, value in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX) and value:
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            if key not in _KEYS:
                raise UsageError(f"{name} sets no limit", hint=_suggestion(key))
            found[key] = _Setting(value, name, Path())
    return found


_KEYS: Final = tuple(k for k in GateTable.__struct_fields__ if k != "models")


def _hint(message: str) -> str | None:
    """What msgspec's message leaves out: the key that was probably meant."""
    unknown = re.search(r"unknown field `(.*?)`", message)
    return None if unknown is None else _suggestion(unknown[1])


def _suggestion(key: str) -> str:
    return did_you_mean(key, _KEYS, f"known: {', '.join(_KEYS)}")
