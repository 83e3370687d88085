"""What a cloud that starts edgeserve in its containers expects of a server: settings from its environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeserve.errors import UsageError
from edgeserve.serve.settings.clouds import azureml, sagemaker, vertex

PRESETS = {"sagemaker": sagemaker.preset, "vertex": vertex.preset, "azureml": azureml.preset}


def preset(cloud: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings by name, which flags and the file override. Raises UsageError."""
    return PRESETS[cloud](environ)


def check_folder(cloud: str, folder: Path) -> None:
    """Raises UsageError unless a cloud's model folder is there."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"no model to serve: {folder} {what}",
            cause=f"--cloud {cloud} serves what the platform puts there: a bundle NAME.edge, or a repository of models",
            hint=f"on another machine, name one: edgeserve run --cloud {cloud} NAME.edge",
        )
