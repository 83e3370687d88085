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
    """Raises UsageError unless a cloud's model folder is a bundle, or holds one or a repository of models."""
    from edgeserve.bundle.manifest import MANIFEST_NAME

    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
    else:
        try:
            there = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
        except OSError as error:
            raise UsageError(f"{folder} cannot be read", cause=error.strerror) from None
        if (
            any(child.is_dir() or child.suffix == ".edge" for child in there)
            or (folder / MANIFEST_NAME).is_file()
        ):
            return
        names = ", ".join(child.name for child in there[:5])
        problem = f"holds no bundle, only {names}" if names else "is empty"
    raise UsageError(
        f"no model to serve: {folder} {problem}",
        cause=f"--cloud {cloud} serves what the platform puts there: a bundle NAME.edge, or a repository of models",
        hint=f"on another machine, name one: edgeserve run --cloud {cloud} NAME.edge",
    )
