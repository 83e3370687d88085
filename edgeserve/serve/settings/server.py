"""How to serve: from flags, and from a `serve.toml` whose keys are the flags' names."""

from __future__ import annotations

import logging
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET

from edgeserve.errors import UsageError, nearest
from edgeserve.serve.access.addresses import LOCALHOST
from edgeserve.serve.access.keys import CONTROL_HINT, Keys, is_loopback, read_keys
from edgeserve.serve.access.tls import Tls
from edgeserve.serve.engine import OnFull, OnTimeout
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.model import NAME, ModelSettings, PrioritySettings, size_bytes

log = logging.getLogger(__name__)

_VERSIONS: Final = re.compile(r"latest(:[1-9]\d{0,3})?|all|[1-9]\d{0,8}(,[1-9]\d{0,8})*")
_HINT = "add --keys FILE or --tls-cert and --tls-key, or --insecure if something else protects it"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One server. What serves is `bundle`, `bundles`, the models of the folder `repository`, and those of
    `[[model]]` tables, which may say otherwise for one model.

    `threads` are those of one call, `instances` calls run side by side; 0 chooses. `queue` bounds requests
    that wait or run, `queue_policy` says what a full one does; `timeout` (seconds, 0: none) is the
    deadline of requests that name none; with `timeout_action` delay it is no deadline, but those whose time
    is over wait for the others. `priority` says what differs for requests of one level. `max_batch`,
    `preferred_batches`, `batch_delay` (seconds), `priority_levels`, `default_priority`, `own_timeouts` and
    `weight` are those of EngineSettings.

    `memory_budget` and `cache` are sizes ("2GB"; 0: no bound, no cache). `watch` is the time between looks
    at the files (seconds, 0: none); `load` names the models to load at the start (none: all).
    `grpc_port` None leaves gRPC off; `grpc_compression` has its answers of `limits.compress_bytes` and more
    compressed for clients that accept it, as all do that were not told otherwise; `grpc_streams` may be open
    at a time.

    `host` localhost, the default, is 127.0.0.1 and ::1. `keys` is a file of API keys; `model_control` lets clients load and unload models, `shared_memory`
    (prefixes of names) lets them register system shared memory; both need the control role.
    `control_port` moves everything that needs it to an address of its own, where `control_names` are
    the names it may be addressed by. `max_body` is a short form of `limits.body_bytes`. On SIGTERM
    the server is not ready but accepts connections for `lame_duck` seconds, then answers what it has
    within `drain_timeout` seconds.
    From `fallback` to `inject`: as in ChainOptions."""

    bundle: str | None = None
    bundles: tuple[str, ...] = ()
    repository: str | None = None
    model: tuple[ModelSettings, ...] = ()
    name: str | None = None
    versions: str = "latest"
    host: str = LOCALHOST
    http_port: int = 8000
    grpc_port: int | None = None
    grpc_compression: bool = False
    grpc_streams: int = 32
    device: str | None = None
    variant: str | None = None
    fallback: Literal["auto", "never"] = "auto"
    require: str | None = None
    isolate: Literal["always", "accelerators", "never"] = "accelerators"
    standby: Literal["auto", "warm", "cold"] = "auto"
    watchdog: float = 2.0
    open_timeout: float = 180.0
    recheck: float = 0.0
    verify: bool = False
    reopen: float = 1.0
    isolated_memory: int = 0
    inject: tuple[str, ...] = ()
    threads: int = 0
    instances: int = 0
    spin: bool = False
    batching: bool = True
    max_batch: int = 0
    preferred_batches: tuple[int, ...] = ()
    batch_delay: float = 0.0
    queue: int = 1024
    queue_policy: OnFull = "reject"
    timeout: float = 0.0
    own_timeouts: bool = True
    timeout_action: OnTimeout = "reject"
    priority_levels: int = 1
    default_priority: int = 1
    priority: tuple[PrioritySettings, ...] = ()
    weight: float = 1.0
    memory_budget: int | str = 0
    cache: int | str = 0
    load: tuple[str, ...] | None = None
    watch: float = 0.0
    readiness: Literal["all", "any"] = "all"
    workers: int = 1
    access_log: bool = False
    log_format: Literal["text", "json"] = "text"
    metrics_compat: Literal["none", "triton"] = "none"
    max_body: int | None = None
    drain_timeout: float = 30.0
    lame_duck: float = 0.0
    insecure: bool = False
    keys: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    model_control: bool = False
    shared_memory: str | tuple[str, ...] = ()
    control_host: str | None = None
    control_port: int | None = None
    control_names: tuple[str, ...] = ()
    limits: Limits = Limits()

    def check(self) -> None:
        """Raise UsageError for what cannot work or must not be done silently."""
        for key in ("http_port", "grpc_port", "control_port"):
            port = getattr(self, key)
            if port is not None and not 0 <= port <= 65535:
                raise UsageError(f"{key} {port} is no port", hint="0 to 65535; 0 picks one")
        self._check_models()
        for key in ("queue", "max_body", "workers", "grpc_streams"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UsageError(f"{key} must be at least 1")
        for key in ("watchdog", "open_timeout", "reopen"):
            value = getattr(self, key)
            if value <= 0 or not math.isfinite(value):
                raise UsageError(f"{key} must be a number of seconds, more than 0, not {value}")
        for key in (
            "threads", "instances", "timeout", "drain_timeout", "lame_duck", "recheck",
            "isolated_memory", "watch",
        ):  # fmt: skip
            value = getattr(self, key)
            if value < 0 or not math.isfinite(value):
                raise UsageError(f"{key} must be a number of 0 or more, not {value}")
        problem = self.limits.problem()
        if problem is not None:
            raise UsageError(problem)
        self._check_access()

    def _check_access(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("tls_cert and tls_key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise UsageError("tls_client_ca needs tls_cert and tls_key")
        if self.control_host is not None and self.control_port is None:
            raise UsageError("control_host needs control_port", hint="--control-port 8003")
        keys = self.read_keys()
        if not (self.insecure or is_loopback(self.host) or keys or self.tls_cert):
            raise UsageError(
                f"{self.host} is open to the network, and nothing protects the server", hint=_HINT
            )
        control = self.model_control or bool(self.shared_memory_prefixes)
        separate = self.control_port is not None
        address = (self.control_host or LOCALHOST) if separate else self.host
        if (control or separate) and not is_loopback(address) and not keys.control:
            raise UsageError(
                f"the control plane on {address} needs a key",
                hint=f"{CONTROL_HINT}; or --control-port moves it to loopback",
            )

    def _check_models(self) -> None:
        """Raise UsageError for what no model can be served with."""
        if not (self.bundle or self.bundles or self.repository or self.model):
            raise UsageError(
                "no bundle is named", hint="edgeserve run NAME.edge, or bundle = … in the file"
            )
        for key in ("memory_budget", "cache"):
            size_bytes(getattr(self, key), key)
        for name in (self.name, *(m.name for m in self.model)):
            if name is not None and not NAME.fullmatch(name):
                raise UsageError(
                    f"'{name}' cannot name a model",
                    hint="letters, digits, '.', '_' and '-', at most 128, the first a letter or digit",
                )
        if self.name is not None and not (self.bundle and len(self.given) == 1):
            raise UsageError("name is for one bundle", hint="name several in [[model]] tables")
        self.check_model()
        for model in self.model:
            self.of(model).check_model()

    @property
    def given(self) -> tuple[str, ...]:
        """Everything that was named to serve, but for tables about models of the repository."""
        single = () if self.bundle is None else (self.bundle,)
        folder = () if self.repository is None else (self.repository,)
        return (*single, *self.bundles, *folder, *(m.bundle for m in self.model if m.bundle))

    def of(self, model: ModelSettings) -> Settings:
        """The settings of one model, where its table has the last word."""
        own = {
            field: value
            for field in ModelSettings.__struct_fields__
            if field not in ("bundle", "name") and (value := getattr(model, field)) is not UNSET
        }
        return self.changed(own)

    def changed(self, own: dict[str, Any]) -> Settings:
        """With what one model's table or file says. Where that has fewer priorities, tables about others are
        not for it."""
        if "priority_levels" in own and "priority" not in own:
            levels = own["priority_levels"]
            own = {**own, "priority": tuple(p for p in self.priority if p.level <= levels)}
        return msgspec.structs.replace(self, **own)

    def for_model(self) -> ModelSettings:
        """What one model is served with."""
        fields = set(ModelSettings.__struct_fields__) - {"bundle", "name"}
        given = {f: v for f in fields if (v := getattr(self, f)) is not None}
        return ModelSettings(**given)

    def check_model(self) -> None:
        """Raise UsageError for a model's settings that cannot work."""
        for key in ("instances", "max_batch", "threads"):
            if getattr(self, key) < 0:
                raise UsageError(f"{key} must be a number of 0 or more, not {getattr(self, key)}")
        if self.queue < 1:
            raise UsageError("queue must be at least 1")
        if any(size < 1 for size in self.preferred_batches):
            raise UsageError("preferred_batches must be sizes of 1 or more")
        if not 0 <= self.batch_delay <= 10:
            raise UsageError(f"batch_delay must be 0 to 10 seconds, not {self.batch_delay}")
        if not 1 <= self.priority_levels <= 1000:
            raise UsageError("priority_levels must be 1 to 1000")
        if not 1 <= self.default_priority <= self.priority_levels:
            raise UsageError("default_priority must be 1 to priority_levels")
        self._check_priorities()
        if not 0 < self.weight < math.inf:
            raise UsageError(f"weight must be more than 0, not {self.weight}")
        if not _VERSIONS.fullmatch(self.versions):
            raise UsageError(
                f"versions '{self.versions}' is no choice",
                hint="latest, latest:2, all, or numbers like 1,3",
            )

    def _check_priorities(self) -> None:
        levels = [own.level for own in self.priority]
        if len(set(levels)) < len(levels):
            raise UsageError("two [[priority]] tables are about the same level")
        for own in self.priority:
            where = f"[[priority]] level {own.level}"
            if not 1 <= own.level <= self.priority_levels:
                raise UsageError(f"{where}: level must be 1 to priority_levels")
            if own.queue is not UNSET and own.queue < 1:
                raise UsageError(f"{where}: queue must be at least 1")
            if own.timeout is not UNSET and not 0 <= own.timeout < math.inf:
                raise UsageError(f"{where}: timeout must be a number of 0 or more")

    @property
    def shared_memory_prefixes(self) -> tuple[str, ...]:
        """Of the names of shared memory that clients may register; none: they may not."""
        given = self.shared_memory
        return (given,) if isinstance(given, str) else given

    def read_keys(self) -> Keys:
        """The keys of the file and the environment. Raises UsageError."""
        return read_keys(self.keys, os.environ)

    def open_tls(self) -> Tls | None:
        """Raises UsageError for certificates that cannot be used."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return Tls(self.tls_cert, self.tls_key, self.tls_client_ca)

    def effective_limits(self) -> Limits:
        if self.max_body is None:
            return self.limits
        return msgspec.structs.replace(self.limits, body_bytes=self.max_body)


# What models are served with is followed while the server runs; these are not.
SERVER_FIELDS: Final = tuple(
    f
    for f in Settings.__struct_fields__
    if f not in ModelSettings.__struct_fields__ and f not in ("bundles", "repository", "model")
)


def read_settings(file: Path, flags: dict[str, Any]) -> Settings:
    """The settings in a TOML file, with `flags` that are not None in their place.

    Relative paths are relative to the file. Raises UsageError.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} is not a readable TOML file", cause=str(error)) from None
    for key in ("bundle", "repository", "keys", "tls_cert", "tls_key", "tls_client_ca"):
        if isinstance(values.get(key), str):
            values[key] = str(file.parent / values[key])
    if isinstance(values.get("bundles"), list):
        values["bundles"] = [
            str(file.parent / b) if isinstance(b, str) else b for b in values["bundles"]
        ]
    for table in _tables(values):
        if isinstance(table.get("bundle"), str):
            table["bundle"] = str(file.parent / table["bundle"])
    return settings_from(values | {k: v for k, v in flags.items() if v is not None}, str(file))


class SettingsSource(msgspec.Struct, frozen=True):
    """Where settings came from, to read them again: a file (None: none), and flags."""

    file: str | None
    flags: dict[str, Any]

    def read(self) -> Settings:
        """Raises UsageError."""
        if self.file is not None:
            return read_settings(Path(self.file), self.flags)
        return settings_from({k: v for k, v in self.flags.items() if v is not None})


def followed(old: Settings, new: Settings) -> Settings:
    """What a running server takes over of new settings: what is about models. The rest needs another start,
    and the log says so."""
    own = {f: getattr(old, f) for f in SERVER_FIELDS}
    ignored = [f for f, value in own.items() if value != getattr(new, f)]
    if ignored:
        log.warning("needs a restart to take effect: %s", ", ".join(ignored))
    return msgspec.structs.replace(new, **own)


def settings_from(values: dict[str, Any], where: str = "the flags") -> Settings:
    """Typed and checked settings. Raises UsageError, naming an unknown key's nearest neighbour."""
    unknown = sorted(set(values) - set(Settings.__struct_fields__))
    if unknown:
        guess = nearest(unknown[0], Settings.__struct_fields__)
        raise UsageError(
            f"{where}: unknown key '{unknown[0]}'",
            hint=f"did you mean '{guess}'?" if guess else None,
        )
    for table in _tables(values):
        own = sorted(set(table) - set(ModelSettings.__struct_fields__))
        if own:
            guess = nearest(own[0], ModelSettings.__struct_fields__)
            raise UsageError(
                f"{where}: unknown key '{own[0]}' in [[model]]",
                hint=f"did you mean '{guess}'?" if guess else None,
            )
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where} cannot be used", cause=str(error)) from None
    settings.check()
    return settings


def _tables(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The `[[model]]` tables of a file."""
    tables = values.get("model")
    return [t for t in tables if isinstance(t, dict)] if isinstance(tables, list) else []
