"""Who may do what: one authoriser that every route of every protocol asks. Knows nothing of sockets.

Two roles need leave: `infer` uses models and looks at them, `control` changes the server. Keys are kept
as digests, compared in constant time, and never logged.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.errors import EdgeServeError, UsageError

INFER_VARIABLE: Final = "EDGESERVE_API_KEY"
CONTROL_VARIABLE: Final = "EDGESERVE_CONTROL_KEY"
CONTROL_HINT: Final = f"'control KEY' in the file of --keys, or {CONTROL_VARIABLE}"
_MIN_KEY: Final = 16
_KEY: Final = re.compile(r"[\x21-\x7e]+")


class Role(enum.Enum):
    """What a route needs: nothing (health), leave to use models, leave to change the server."""

    OPEN = "open"
    INFER = "infer"
    CONTROL = "control"


class AccessDenied(EdgeServeError):
    """Base of refusals; says nothing about which keys exist."""


class Unauthenticated(AccessDenied):
    """No key, or one that is not known (HTTP 401, gRPC UNAUTHENTICATED)."""


class Forbidden(AccessDenied):
    """Known or not, this caller may not do this here (HTTP 403, gRPC PERMISSION_DENIED)."""


class Keys(msgspec.Struct, frozen=True):
    """SHA-256 digests of the keys for each role; a control key may also infer."""

    infer: tuple[bytes, ...] = ()
    control: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.infer or self.control)

    def __repr__(self) -> str:
        return f"Keys({len(self.infer)} infer, {len(self.control)} control)"

    def role(self, key: str) -> Role | None:
        """The highest role of a key. Looks at every key, so that time tells nothing."""
        digest = _digest(key)
        control = [hmac.compare_digest(digest, known) for known in self.control]
        infer = [hmac.compare_digest(digest, known) for known in self.infer]
        return Role.CONTROL if any(control) else Role.INFER if any(infer) else None


class Caller(msgspec.Struct, frozen=True):
    """What is known of who asks. `host` and `origin` are HTTP's headers; a protocol that browsers do
    not speak leaves them None."""

    key: str | None = None
    address: str = ""
    host: str | None = None
    origin: str | None = None


class Authoriser:
    """Decides for one listener. `control` False: this listener has no control plane at all.

    `hosts` are the names under which the control plane may be addressed: a page in somebody's browser
    that resolves its own name to this machine (DNS rebinding) names another one.
    """

    def __init__(
        self, keys: Keys, hosts: Iterable[str] = (), *, listens_on: str, control: bool = True
    ) -> None:
        self._keys = keys
        self._control = control
        self._loopback = is_loopback(listens_on)
        named = [listens_on, *hosts]
        if self._loopback:
            named += ["localhost", "127.0.0.1", "::1"]
        everywhere = ("", "0.0.0.0", "::")  # noqa: S104 - addresses to listen on, no names
        self._hosts = {h.lower().strip("[]") for h in named if h not in everywhere}

    def change(self, keys: Keys) -> None:
        """From now on these keys are known, and no others. What was let in before is not asked again: its
        listener has to."""
        self._keys = keys

    def check(self, role: Role, caller: Caller) -> None:
        """Raises Unauthenticated or Forbidden."""
        if role is Role.CONTROL:
            self._check_control(caller)
        elif role is Role.INFER and self._keys:
            self._role_of(caller)

    def allows(self, role: Role, caller: Caller) -> bool:
        try:
            self.check(role, caller)
        except AccessDenied:
            return False
        return True

    def _role_of(self, caller: Caller) -> Role:
        if caller.key is None:
            raise Unauthenticated(
                "a key is needed", hint="send Authorization: Bearer KEY, or X-Api-Key: KEY"
            )
        role = self._keys.role(caller.key)
        if role is None:
            raise Unauthenticated("the key is not known")
        return role

    def _check_control(self, caller: Caller) -> None:
        if not self._control:
            raise Forbidden("the control plane is not on this address")
        if caller.host is not None and host_name(caller.host) not in self._hosts:
            raise Forbidden(
                "the control plane does not answer to this Host",
                hint="add it with --control-name, or address the server by its own name",
            )
        if caller.origin is not None and host_name(_authority(caller.origin)) not in self._hosts:
            raise Forbidden("the control plane does not answer to pages of other sites")
        if self._keys:
            if self._role_of(caller) is not Role.CONTROL:
                # Open to whoever is on this machine, it would be open to those who may not even infer.
                closed = "" if self._keys.control else "; no control key is configured"
                raise Forbidden(f"this key may infer, not control{closed}", hint=CONTROL_HINT)
        elif not (self._loopback and is_loopback(caller.address)):
            raise Forbidden("the control plane needs a key when it is reached from elsewhere")


def read_keys(file: str | None, environment: Mapping[str, str]) -> Keys:
    """The keys of a file and of the environment.

    A line of the file is `infer KEY` or `control KEY`; empty lines and those that begin with # count
    not. Raises UsageError, which names the line, never the key.
    """
    found: dict[str, list[bytes]] = {"infer": [], "control": []}
    if file is not None:
        try:
            lines = Path(file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"the keys in {file} cannot be read", cause=reason) from None
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or words[0] not in found:
                raise UsageError(f"{file}, line {number}: expected 'infer KEY' or 'control KEY'")
            _check_key(words[1], f"{file}, line {number}")
            found[words[0]].append(_digest(words[1]))
        if not any(found.values()):
            raise UsageError(f"{file} holds no key")
    for role, variable in (("infer", INFER_VARIABLE), ("control", CONTROL_VARIABLE)):
        key = environment.get(variable)
        if key:
            _check_key(key, variable)
            found[role].append(_digest(key))
    return Keys(tuple(found["infer"]), tuple(found["control"]))


def key_of(authorization: str | None, api_key: str | None) -> str | None:
    """The key in `Authorization: Bearer KEY` or `X-Api-Key: KEY`."""
    if api_key:
        return api_key
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own and nobody else can reach it."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def host_name(value: str) -> str:
    """The name of a Host header, lower case, without port and brackets."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.rpartition(":")[0].lower() if value.count(":") == 1 else value.lower()


def _authority(origin: str) -> str:
    return origin.partition("://")[2]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _check_key(key: str, where: str) -> None:
    if len(key) < _MIN_KEY or not _KEY.fullmatch(key):
        raise UsageError(
            f"{where}: a key has at least {_MIN_KEY} printable ASCII characters and no space",
            hint="openssl rand -hex 32 makes one",
        )
