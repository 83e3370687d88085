"""Azure Machine Learning: port 5001, the model in AZUREML_MODEL_DIR.

Source: https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeserve.serve.settings.clouds.environment import ANY_ADDRESS, port_of


def preset(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings. Raises UsageError."""
    found: dict[str, Any] = {
        "host": ANY_ADDRESS,
        "insecure": True,  # only the platform reaches the container
        "http_port": port_of(environ, "AZUREML_INFERENCE_SERVER_PORT", 5001),
        "protocols": ("azureml",),
    }
    if environ.get("AZUREML_MODEL_DIR"):
        found["bundle"] = environ["AZUREML_MODEL_DIR"]
    return found
