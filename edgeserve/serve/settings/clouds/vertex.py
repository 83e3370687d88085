"""Vertex AI: AIP_HTTP_PORT; the routes AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are read by the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeserve.serve.settings.clouds.environment import ANY_ADDRESS, port_of


def preset(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings. Raises UsageError."""
    return {
        "host": ANY_ADDRESS,
        "insecure": True,  # only the platform reaches the container
        "http_port": port_of(environ, "AIP_HTTP_PORT", 8080),
        "protocols": ("vertex",),
    }
