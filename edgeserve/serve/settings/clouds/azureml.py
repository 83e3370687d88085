"""Azure Machine Learning: port 5001, the model in AZUREML_MODEL_DIR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeserve.serve.settings.clouds.environment import ANY_ADDRESS


def preset(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings. Raises UsageError."""
    found: dict[str, Any] = {
        "host": ANY_ADDRESS,
        "insecure": True,  # only the platform reaches the container
        "http_port": 5001,
        "protocols": ("azureml",),
    }
    if environ.get("AZUREML_MODEL_DIR"):
        found["repository"] = environ["AZUREML_MODEL_DIR"]
    return found
