"""Installed-looking distributions for tests of entry points: a folder on sys.path, no pip."""

from __future__ import annotations

from pathlib import Path


def write_distribution(folder: Path, name: str, group: str, entries: str, module: str) -> Path:
    """A distribution NAME in `folder` whose module NAME holds `module`, with entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    (folder / f"{name}.py").write_text(module)
    return folder
