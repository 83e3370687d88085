"""Amazon SageMaker: port 8080 or SAGEMAKER_BIND_TO_PORT, the model in /opt/ml/model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgeserve.serve.settings.clouds.environment import ANY_ADDRESS, port_of

_MODELS: Final = "/opt/ml/model"


def preset(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings. Raises UsageError."""
    return {
        "host": ANY_ADDRESS,
        "insecure": True,  # only the platform reaches the container
        "http_port": port_of(environ, "SAGEMAKER_BIND_TO_PORT", 8080),
        "protocols": ("sagemaker",),
        "repository": _MODELS,
    }
