"""What a `[[model]]` table of a serve.toml says about one model."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from edgeserve.errors import UsageError
from edgeserve.serve.engine import OnFull, OnTimeout

# A model's name is part of URLs, of metrics and of paths below the repository folder.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?")


class PrioritySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `[[priority]]` table: what differs for the requests of that level. What it does not say is as for
    the model; with a `queue` of its own the level is not counted in the model's."""

    level: int
    queue: int | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    own_timeouts: bool | UnsetType = UNSET
    timeout_action: OnTimeout | UnsetType = UNSET


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `[[model]]` table: a bundle, or what differs for a model of the repository folder. What it does
    not say is as for the server."""

    bundle: str | None = None
    name: str | None = None
    versions: str | UnsetType = UNSET
    device: str | UnsetType = UNSET
    variant: str | UnsetType = UNSET
    fallback: Literal["auto", "never"] | UnsetType = UNSET
    require: str | UnsetType = UNSET
    isolate: Literal["always", "accelerators", "never"] | UnsetType = UNSET
    standby: Literal["auto", "warm", "cold"] | UnsetType = UNSET
    watchdog: float | UnsetType = UNSET
    open_timeout: float | UnsetType = UNSET
    recheck: float | UnsetType = UNSET
    verify: bool | UnsetType = UNSET
    reopen: float | UnsetType = UNSET
    isolated_memory: int | UnsetType = UNSET
    inject: tuple[str, ...] | UnsetType = UNSET
    threads: int | UnsetType = UNSET
    instances: int | UnsetType = UNSET
    spin: bool | UnsetType = UNSET
    batching: bool | UnsetType = UNSET
    max_batch: int | UnsetType = UNSET
    preferred_batches: tuple[int, ...] | UnsetType = UNSET
    batch_delay: float | UnsetType = UNSET
    queue: int | UnsetType = UNSET
    queue_policy: OnFull | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    own_timeouts: bool | UnsetType = UNSET
    timeout_action: OnTimeout | UnsetType = UNSET
    priority_levels: int | UnsetType = UNSET
    default_priority: int | UnsetType = UNSET
    priority: tuple[PrioritySettings, ...] | UnsetType = UNSET
    weight: float | UnsetType = UNSET


def size_bytes(value: int | str, key: str) -> int:
    """A size in bytes: a number, or a text like "500MB" or "2GiB". Raises UsageError."""
    if isinstance(value, int):
        if value < 0:
            raise UsageError(f"{key} must be 0 or more")
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise UsageError(f"{key} '{value}' is no size", hint="like 500MB, 2GB or 2GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kMGT".index(match[2].replace("K", "k") or " "))
