"""Vertex AI: the port and the two routes that it gives a container in AIP_* variables.

Source: https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements. AIP_STORAGE_URI is in
Google's storage and is not fetched: the bundle is part of the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from edgeserve.errors import UsageError
from edgeserve.serve.settings.clouds.environment import ANY_ADDRESS, port_of

_DEFAULT: Final = "/v1/endpoints/{endpoint}/deployedModels/{deployed}"
_PATH: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")


class VertexRoutes(NamedTuple):
    """Path patterns: of the health route, and of the route for predictions."""

    health: str
    predict: str


def preset(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings. Raises UsageError."""
    vertex_routes(environ)
    return {
        "host": ANY_ADDRESS,
        "insecure": True,  # only the platform reaches the container
        "http_port": port_of(environ, "AIP_HTTP_PORT", 8080),
        "protocols": ("vertex",),
    }


def vertex_routes(environ: Mapping[str, str]) -> VertexRoutes:
    """AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE, or Vertex AI's own defaults for any endpoint. Raises UsageError."""
    health = environ.get("AIP_HEALTH_ROUTE") or _DEFAULT
    predict = environ.get("AIP_PREDICT_ROUTE") or f"{_DEFAULT}:predict"
    for name, path, default in (
        ("AIP_HEALTH_ROUTE", health, _DEFAULT),
        ("AIP_PREDICT_ROUTE", predict, f"{_DEFAULT}:predict"),
    ):
        if path != default and not _PATH.fullmatch(path):
            raise UsageError(
                f"{name} {path!r:.80} is not a valid path", hint="for example /predict"
            )
    return VertexRoutes(health, predict)
