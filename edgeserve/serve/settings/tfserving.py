"""What TF Serving's configuration files say: which models to serve (`--model_config_file`), and how requests are
batched (`--batching_parameters_file`). Fields without effect here are listed.

Sources: tensorflow_serving/config/model_server_config.proto, file_system_storage_path_source.proto and
servables/tensorflow/session_bundle_config.proto.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from edgeserve.errors import UsageError
from edgeserve.names import NAME, NAME_RULE
from edgeserve.serve.settings import textproto
from edgeserve.serve.settings.pbtxt import version_policy
from edgeserve.serve.settings.textproto import Message
from edgeserve.serve.settings.versions import VersionPolicy

log = logging.getLogger(__name__)

_LIST: Final = "model_config_list"
_POLICY: Final = "model_version_policy"
_UNDERSTOOD: Final = {"name", "base_path", _POLICY, "model_platform", "model_type"}
# Field of BatchingParameters, our setting, and what a value means in it.
_BATCHING: Final[dict[str, tuple[str, Callable[[int], Any]]]] = {
    "max_batch_size": ("max_batch", int),
    "batch_timeout_micros": ("batch_delay", lambda microseconds: microseconds / 1e6),
    "num_batch_threads": ("instances", int),
}
_SIZES: Final = "allowed_batch_sizes"
_T = TypeVar("_T")


class TfModel(msgspec.Struct, frozen=True):
    """One model of a model config file: its folder, which holds a folder for each version."""

    name: str
    folder: Path
    versions: VersionPolicy | None = None


def read_models(file: Path) -> tuple[TfModel, ...]:
    """The models of a ModelServerConfig. Raises UsageError naming the file and the field."""
    return _read(file, lambda message: _models(message, file))


def read_batching(file: Path) -> dict[str, Any]:
    """Settings by name, of BatchingParameters. Raises UsageError naming the file and the field."""
    return _read(file, lambda message: _batching(message, file))


def _read(file: Path, use: Callable[[Message], _T]) -> _T:
    try:
        return use(textproto.read(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read", cause=str(error)) from None
    except UsageError as error:
        raise UsageError(f"{file} cannot be used", cause=str(error), hint=error.hint) from None


def _models(message: Message, file: Path) -> tuple[TfModel, ...]:
    if message.message("custom_model_config") is not None:
        raise UsageError("custom_model_config is not supported", hint=f"use {_LIST}")
    listed = message.message(_LIST)
    if listed is None:
        raise UsageError(f"expected {_LIST} {{ config {{ name: ... base_path: ... }} }}")
    found: dict[str, TfModel] = {}
    for at, entry in enumerate(listed.all("config")):
        if not isinstance(entry, Message):
            raise UsageError(f"config[{at}]: expected a message, got {entry!r:.40}")
        model = _model(entry, f"config[{at}]", file)
        if model.name in found:
            raise UsageError(f"two models are called '{model.name}'")
        found[model.name] = model
    return tuple(found.values())


def _model(entry: Message, where: str, file: Path) -> TfModel:
    name, base = entry.text("name"), entry.text("base_path")
    if not name or not base:
        raise UsageError(f"{where}: expected a name and a base_path")
    if not NAME.fullmatch(name):
        raise UsageError(f"{where}: '{name:.128}' cannot be a model's name", hint=NAME_RULE)
    if "://" in base:
        raise UsageError(
            f"{where}: base_path '{base:.200}' is not on this machine",
            hint="copy the model to this machine: nothing is fetched from the network",
        )
    ignored = [field for field in entry.names() if field not in _UNDERSTOOD]
    if ignored:
        log.info("%s: model '%s': without effect: %s", file, name, ", ".join(ignored))
    policy = version_policy(entry.message(_POLICY))
    return TfModel(name, file.parent / base, policy)


def _batching(message: Message, file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, (name, convert) in _BATCHING.items():
        value = _wrapped(message, field)
        if value is not None:
            found[name] = convert(value)
    sizes = message.integers(_SIZES)
    if sizes:
        found["preferred_batches"] = sizes
    ignored = [field for field in message.names() if field not in (*_BATCHING, _SIZES)]
    if ignored:
        log.info("%s: without effect: %s", file, ", ".join(ignored))
    return found


def _wrapped(message: Message, field: str) -> int | None:
    """The number in `field { value: 32 }`; 0 if the message is empty, as protocol buffers have it."""
    inner = message.message(field)
    return None if inner is None else inner.integer("value") or 0
