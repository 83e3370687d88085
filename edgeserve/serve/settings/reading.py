"""Settings from flags and from a `serve.toml` whose keys are the settings' names, and what of a change is followed."""

from __future__ import annotations

import logging
import os
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.errors import UsageError, did_you_mean
from edgeserve.serve.settings.model import ModelTable, PerModel
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.setting import Unit, declared

log = logging.getLogger(__name__)

# What models are served with is followed while the server runs; these are not.
SERVER_FIELDS: Final = tuple(
    name
    for name, known in declared(Settings).items()
    if name not in declared(PerModel) and not known.setting.followed
)
# What names models to serve.
_MODELS: Final = ("bundle", "bundles", "repository", "model", "tf_model_config")
_PATHS: Final = [n for n, known in declared(Settings).items() if known.setting.unit is Unit.PATH]


class SettingsSource(msgspec.Struct, frozen=True):
    """Where settings came from, to read them again: a file (None: none), and flags."""

    file: str | None
    flags: dict[str, Any]

    def read(self) -> Settings:
        """Raises UsageError."""
        if self.file is not None:
            return read_settings(Path(self.file), self.flags)
        return settings_from({k: v for k, v in self.flags.items() if v is not None})


def read_settings(file: Path, flags: dict[str, Any]) -> Settings:
    """The settings in a TOML file, with `flags` that are not None in their place.

    Relative paths are relative to the file. Raises UsageError.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} is not a readable TOML file", cause=str(error)) from None
    for table in (values, *_tables(values)):
        for key in table.keys() & _PATHS:
            table[key] = _beside(file, table[key])
    return settings_from(values | {k: v for k, v in flags.items() if v is not None}, str(file))


def settings_from(values: dict[str, Any], where: str = "the flags") -> Settings:
    """Typed and checked settings. Raises UsageError, naming an unknown key's did_you_mean neighbour."""
    _refuse_unknown(values, Settings, where)
    values = _with_tf_batching(_with_cloud(values))
    for table in _tables(values):
        _refuse_unknown(table, ModelTable, where, " in [[model]]")
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where} cannot be used", cause=str(error)) from None
    settings.check()
    return settings


def _with_cloud(values: dict[str, Any]) -> dict[str, Any]:
    """With what a cloud expects in place of defaults. Its model folder is for servers that name no model. Raises
    UsageError."""
    cloud = values.get("cloud")
    if cloud is None:
        return values
    from edgeserve.serve.settings.clouds import PRESETS, check_folder, preset

    if cloud not in PRESETS:
        return values  # the conversion says so
    found = preset(cloud, os.environ)
    if any(values.get(name) for name in _MODELS):
        found = {name: value for name, value in found.items() if name not in _MODELS}
    elif "bundle" in found:
        check_folder(cloud, Path(found["bundle"]))
    return found | values


def _with_tf_batching(values: dict[str, Any]) -> dict[str, Any]:
    """With what TF Serving's batching parameters say in place of defaults. Raises UsageError."""
    file = values.get("tf_batching")
    if not isinstance(file, str):
        return values
    from edgeserve.serve.settings.tfserving import read_batching

    return read_batching(Path(file)) | values


def followed(old: Settings, new: Settings) -> Settings:
    """What a running server takes over of new settings: what is about models. The rest needs another start,
    and the log says so."""
    own = {f: getattr(old, f) for f in SERVER_FIELDS}
    ignored = [f for f, value in own.items() if value != getattr(new, f)]
    if ignored:
        log.warning("needs a restart to take effect: %s", ", ".join(ignored))
    return msgspec.structs.replace(new, **own)


def _refuse_unknown(
    values: dict[str, Any], kind: type[msgspec.Struct], where: str, table: str = ""
) -> None:
    unknown = sorted(set(values) - set(kind.__struct_fields__))
    if unknown:
        raise UsageError(
            f"{where}: unknown key '{unknown[0]}'{table}",
            hint=did_you_mean(unknown[0], kind.__struct_fields__, None),
        )


def _tables(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The `[[model]]` tables of a file."""
    tables = values.get("model")
    return [t for t in tables if isinstance(t, dict)] if isinstance(tables, list) else []


def _beside(file: Path, value: Any) -> Any:
    """A path, or list of paths, relative to the folder of the file. Other types are returned as they are."""
    if isinstance(value, list):
        return [_beside(file, each) for each in value]
    return str(file.parent / value) if isinstance(value, str) else value
