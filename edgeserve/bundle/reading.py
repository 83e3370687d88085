"""Opening a bundle: the manifest, its files with their digests checked, golden samples."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeserve.bundle.labels import Labels, labelled, names_in
from edgeserve.bundle.manifest import (
    MANIFEST_NAME,
    Binding,
    FileEntry,
    Manifest,
    Precision,
    Variant,
    decode,
)
from edgeserve.errors import BundleError
from edgeserve.tensors import Interface, Tensors

MAX_MANIFEST_BYTES: Final = 16 << 20


class VariantFiles(msgspec.Struct, frozen=True):
    """What a runtime needs to open one variant: the file, its format, and the interface to present.

    `batch` is 0 when the file accepts any batch, else the one batch size it accepts.
    """

    id: str
    path: Path
    format: str
    precision: Precision
    interface: Interface
    batch: int = 0
    bindings: dict[str, Binding] = {}

    def binding(self, name: str) -> Binding:
        return self.bindings.get(name) or Binding(name)


class Bundle:
    """A bundle on disk. Files are verified against their digests the first time they are asked for.

    `path` is what was opened, `root` the folder below which its files are found.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.path = root
        self.root = root
        self.manifest = manifest
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read and validate the manifest of the bundle at `path`, a folder or a file. Raises BundleError."""
        root = Path(path)
        if root.is_file():
            from edgeserve.bundle.archive import ArchiveBundle

            return ArchiveBundle.read(root)
        file = root / MANIFEST_NAME
        if not root.exists():
            raise BundleError(f"{root} does not exist", hint="edgeserve convert MODEL -o NAME.edge")
        if not file.is_file():
            raise BundleError(
                f"{root} is not a bundle",
                cause=f"it is not a folder with a {MANIFEST_NAME}",
                hint="a bundle is the folder that `edgeserve convert` writes",
            )
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file} is larger than a manifest can be")
        return cls(root, decode(file.read_bytes(), str(file)))

    @property
    def name(self) -> str:
        return self.manifest.name

    def variant_files(self, variant_id: str) -> VariantFiles:
        """The verified files of one variant. Raises BundleError when a digest does not match."""
        variant = self.manifest.variant(variant_id)
        for entry in variant.files:
            self.verified_path(entry)
        return variant_files(variant, self.root, self.manifest.interface)

    def verified_path(self, entry: FileEntry) -> Path:
        """The path of a file of this bundle once its size and digest are known to be right."""
        path = self.root / entry.path
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise BundleError(f"{path} leads out of the bundle", cause="it is, or is below, a link")
        with self._lock:
            if entry.path in self._verified:
                return path
            self._provide(entry)
            try:
                size, digest = path.stat().st_size, file_sha256(path)
            except OSError as error:
                raise BundleError(f"{path} cannot be read", cause=str(error)) from None
            if (size, digest) != (entry.size_bytes, entry.sha256):
                raise BundleError(
                    f"{path} is not the file the bundle was written with",
                    cause=f"expected sha256 {entry.sha256[:12]}… ({entry.size_bytes} bytes), "
                    f"got {digest[:12]}… ({size} bytes)",
                    hint="copy the bundle again, or convert the model again",
                )
            self._verified.add(entry.path)
        return path

    def _provide(self, entry: FileEntry) -> None:
        """Make sure that the file is below `root`: in a folder it is."""

    def verify(self) -> None:
        """Check every file the manifest names."""
        for entry in self.manifest.files():
            self.verified_path(entry)

    def present(self) -> set[str]:
        """The paths of all files there are, whether the manifest names them or not."""
        found = (p for p in self.root.rglob("*") if not p.is_dir())
        return {p.relative_to(self.root).as_posix() for p in found}

    def golden(self) -> tuple[Tensors, Tensors]:
        """Golden inputs and the fp32 source's outputs, each stacked along a leading sample axis."""
        golden = self.manifest.golden
        return load_npz(self.verified_path(golden.inputs)), load_npz(
            self.verified_path(golden.outputs)
        )

    def labels(self) -> list[str] | None:
        """The class names."""
        entry = self.manifest.task.labels
        return None if entry is None else list(names_in(self._text(entry)))

    def output_labels(self) -> dict[str, Labels]:
        """The class names by output: empty without labels, and where nothing says whose they are."""
        entry = self.manifest.task.labels
        if entry is None:
            return {}
        names = names_in(self._text(entry))
        output = labelled(self.manifest.interface, len(names))
        return {} if output is None else {output: Labels(entry.path, names)}

    def _text(self, entry: FileEntry) -> str:
        return self.verified_path(entry).read_text("utf-8")

    @property
    def size_bytes(self) -> int:
        return self.manifest_bytes + sum(f.size_bytes for f in self.manifest.files())

    @property
    def manifest_bytes(self) -> int:
        return (self.root / MANIFEST_NAME).stat().st_size


def variant_files(variant: Variant, root: Path, interface: Interface) -> VariantFiles:
    return VariantFiles(
        id=variant.id,
        path=root / variant.main,
        format=variant.format,
        precision=variant.precision,
        interface=interface,
        batch=variant.batch,
        bindings=variant.bindings,
    )


def load_npz(path: Path) -> Tensors:
    """Read an `.npz` without unpickling anything. Raises BundleError."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} is not a readable .npz", cause=str(error)) from None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
