"""What a bundle holds, with every digest checked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeserve.bundle import Bundle, Manifest
from edgeserve.bundle.manifest import MANIFEST_NAME
from edgeserve.inspecting.placing import PlacedHere, placements_here


class BundlePart(msgspec.Struct, frozen=True):
    """One part of a bundle: a variant, the golden samples, the labels, the manifest."""

    name: str
    size_bytes: int


class BundleReport(msgspec.Struct, frozen=True):
    """A bundle whose files are all as they were written: `verified_files` of them were read.

    `unlisted` are files in the folder that the manifest does not name; nothing vouches for them.
    `labels` are class names. `placements` is empty unless candidates were opened.
    """

    path: str
    size_bytes: int
    verified_files: int
    parts: tuple[BundlePart, ...]
    unlisted: tuple[str, ...]
    manifest: Manifest
    placements: tuple[PlacedHere, ...] = ()
    labels: tuple[str, ...] = ()


def place_bundle(path: Path) -> BundleReport:
    """As `inspect_bundle`, and with every candidate opened here: where its operations run."""
    report = inspect_bundle(path)
    return msgspec.structs.replace(report, placements=placements_here(Bundle.open(path)))


def inspect_bundle(path: Path) -> BundleReport:
    """Open, verify and describe a bundle. Raises BundleError (damaged, tampered with, too new)."""
    bundle = Bundle.open(path)
    bundle.verify()
    manifest = bundle.manifest
    files = manifest.files()
    listed = {MANIFEST_NAME, *(f.path for f in files)}
    return BundleReport(
        path=str(path),
        size_bytes=bundle.size_bytes,
        verified_files=len(files),
        parts=_parts(bundle),
        unlisted=tuple(sorted(bundle.present() - listed)),
        manifest=manifest,
        labels=tuple(bundle.labels() or ()),
    )


def _parts(bundle: Bundle) -> tuple[BundlePart, ...]:
    """Sizes by part, largest first; files two variants share count for the first of them."""
    manifest = bundle.manifest
    seen: set[str] = set()
    parts = []
    for variant in manifest.variants:
        own = [f for f in variant.files if f.path not in seen]
        seen.update(f.path for f in own)
        parts.append(BundlePart(f"variant {variant.id}", sum(f.size_bytes for f in own)))
    golden = manifest.golden
    parts.append(BundlePart("golden samples", golden.inputs.size_bytes + golden.outputs.size_bytes))
    if manifest.task.labels:
        parts.append(BundlePart("labels", manifest.task.labels.size_bytes))
    parts.append(BundlePart("manifest", bundle.manifest_bytes))
    return tuple(sorted(parts, key=lambda part: -part.size_bytes))
