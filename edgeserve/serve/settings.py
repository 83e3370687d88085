"""How to serve: from flags, and from a `serve.toml` whose keys are the flags' names."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeserve.errors import UsageError, nearest
from edgeserve.serve.access import CONTROL_VARIABLE, Keys, is_loopback, read_keys
from edgeserve.serve.limits import Limits
from edgeserve.serve.tls import Tls

_HINT = "add --keys FILE or --tls-cert and --tls-key, or --insecure if something else protects it"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One server. `grpc_port` None leaves gRPC off. `threads` are those of one call, 0 lets the
    engine choose; `instances` calls run
    side by side; `queue` bounds requests that wait or run; `timeout` (seconds, 0: none) is the
    deadline of requests that name none.

    `keys` is a file of API keys; `model_control` lets clients load and unload models, `shared_memory`
    (a prefix of names) lets them register system shared memory; both need the control role.
    `control_port` moves everything that needs it to an address of its own, where `control_names` are
    the names it may be addressed by. `max_body` is a short form of `limits.body_bytes`.
    From `fallback` to `inject`: as in ChainOptions."""

    bundle: str
    name: str | None = None
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = None
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
    worker_memory: int = 0
    inject: tuple[str, ...] = ()
    threads: int = 0
    instances: int = 1
    spin: bool = False
    batching: bool = True
    queue: int = 1024
    timeout: float = 0.0
    max_body: int | None = None
    drain_timeout: float = 30.0
    insecure: bool = False
    keys: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    model_control: bool = False
    shared_memory: str | None = None
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
        for key in ("instances", "queue", "max_body"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UsageError(f"{key} must be at least 1")
        for key in ("watchdog", "open_timeout", "reopen"):
            value = getattr(self, key)
            if value <= 0 or not math.isfinite(value):
                raise UsageError(f"{key} must be a number of seconds, more than 0, not {value}")
        for key in ("threads", "timeout", "drain_timeout", "recheck", "worker_memory"):
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
        control = self.model_control or self.shared_memory is not None
        separate = self.control_port is not None
        address = (self.control_host or "127.0.0.1") if separate else self.host
        if (control or separate) and not is_loopback(address) and not keys.control:
            raise UsageError(
                f"the control plane on {address} needs a key",
                hint=f"'control KEY' in the file of --keys, or {CONTROL_VARIABLE}; or --control-port "
                "moves it to loopback",
            )

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


def read_settings(file: Path, flags: dict[str, Any]) -> Settings:
    """The settings in a TOML file, with `flags` that are not None in their place.

    Relative paths are relative to the file. Raises UsageError.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} is not a readable TOML file", cause=str(error)) from None
    for key in ("bundle", "keys", "tls_cert", "tls_key", "tls_client_ca"):
        if isinstance(values.get(key), str):
            values[key] = str(file.parent / values[key])
    return settings_from(values | {k: v for k, v in flags.items() if v is not None}, str(file))


def settings_from(values: dict[str, Any], where: str = "the flags") -> Settings:
    """Typed and checked settings. Raises UsageError, naming an unknown key's nearest neighbour."""
    unknown = sorted(set(values) - set(Settings.__struct_fields__))
    if unknown:
        guess = nearest(unknown[0], Settings.__struct_fields__)
        raise UsageError(
            f"{where}: unknown key '{unknown[0]}'",
            hint=f"did you mean '{guess}'?" if guess else None,
        )
    if "bundle" not in values:
        raise UsageError(
            "no bundle is named", hint="edgeserve run NAME.edge, or bundle = … in the file"
        )
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where} cannot be used", cause=str(error)) from None
    settings.check()
    return settings
