"""TLS of the gRPC listener, with the certificate files of the HTTP listeners."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from edgeserve.errors import UsageError
from edgeserve.serve.settings.server import Settings

log = logging.getLogger(__name__)


def server_credentials(settings: Settings) -> Any:
    """Credentials that follow the files when they change; None without TLS. Raises UsageError."""
    tls = settings.open_tls()
    if tls is None:
        return None
    seen = tls.pem()

    def renewed() -> Any:
        """What grpc asks for at every handshake: a configuration where the files have changed."""
        nonlocal seen
        try:
            found = tls.pem()
            if found == seen:
                return None
            settings.open_tls()  # a half-written pair must not replace the one in use
        except (OSError, UsageError) as error:
            log.warning("the renewed certificate is not used: %s", error)
            return None
        seen = found
        log.info("the certificate was renewed")
        return _configuration(*found)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(*seen), renewed, require_client_authentication=seen[2] is not None
    )


def _configuration(certificate: bytes, key: bytes, authorities: bytes | None) -> Any:
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)
