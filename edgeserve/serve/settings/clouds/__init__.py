"""What a cloud that starts edgeserve in its containers expects of a server: settings from its environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeserve.serve.settings.clouds import azureml, sagemaker, vertex

PRESETS = {"sagemaker": sagemaker.preset, "vertex": vertex.preset, "azureml": azureml.preset}


def preset(cloud: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings by name, which flags and the file override. Raises UsageError."""
    return PRESETS[cloud](environ)
