"""TLS of the listeners: the server's certificate, and the authority that clients' must come from."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from edgeserve.errors import UsageError

log = logging.getLogger(__name__)


class Tls:
    """Certificate files, and a context made of them that follows them when they change.

    `client_ca` names the authorities whose certificates clients must show (mTLS).
    """

    def __init__(self, certificate: str, key: str, client_ca: str | None = None) -> None:
        """Raises UsageError for files that cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load()
        self._seen = self._stamps()
        if client_ca is not None:
            try:
                self.context.load_verify_locations(client_ca)
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"{client_ca} holds no certificates", cause=str(error)) from None
            self.context.verify_mode = ssl.CERT_REQUIRED

    def refresh(self) -> None:
        """Use renewed files for connections from now on; keep the old ones if the new do not fit."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            # Into a context of its own first: a half-written pair must not spoil the one in use.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
            self._load()
        except (OSError, UsageError) as error:
            log.warning("the renewed certificate is not used: %s", error)
        else:
            log.info("the certificate was renewed")

    def pem(self) -> tuple[bytes, bytes, bytes | None]:
        """Certificate chain, key, and clients' authorities, for servers with a TLS of their own."""
        authorities = Path(self._client_ca).read_bytes() if self._client_ca else None
        return Path(self._certificate).read_bytes(), Path(self._key).read_bytes(), authorities

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{self._certificate} and {self._key} are not a matching certificate and key",
                cause=error.strerror or str(error),
            ) from None

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        stamps = []
        for file in (self._certificate, self._key):
            try:
                stat = Path(file).stat()
            except OSError:
                stamps.append((0, 0))
            else:
                stamps.append((stat.st_mtime_ns, stat.st_ino))
        return tuple(stamps)


def _no_password() -> str:
    raise UsageError("the TLS key is encrypted", hint="openssl rsa -in KEY -out PLAIN")
