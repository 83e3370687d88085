"""Opening a bundle, a folder or one file: the manifest, files with their digests checked, golden samples.

Of an archive only what is asked for is read, and checked: opening one candidate of a large bundle reads that candidate's
files and nothing else. Only what must be a file of its own is unpacked, into a folder of this process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import weakref
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle.archive import manifest_in, member, members
from edgeserve.bundle.files import arrays_in, file_sha256, followed, inside
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
from edgeserve.bundle.scratch import no_room, scratch_folder
from edgeserve.errors import BundleError
from edgeserve.tensors import Interface, Tensors, as_texts

MAX_MANIFEST_BYTES: Final = 16 << 20


class VariantFiles(msgspec.Struct, frozen=True):
    """What a runtime needs to open one variant: the file, its format, and the interface to present.

    `batch` is 0 when the file accepts any batch, else the one batch size it accepts. Of a bundle's variant
    `files` are all its files, below the folder `root` or in the file `archive`: an engine is given what
    `content` returns, since what it maps from a path may be overwritten later. Then `path` need not exist.
    """

    id: str
    path: Path
    format: str
    precision: Precision
    interface: Interface
    batch: int = 0
    bindings: dict[str, Binding] = {}
    files: tuple[FileEntry, ...] = ()
    root: str = ""
    archive: str | None = None

    @property
    def is_sealed(self) -> bool:
        """Whether it is known what must be in the file."""
        return any(Path(self.root, f.path) == self.path for f in self.files)

    def content(self, path: Path | None = None) -> bytes:
        """What is in one of the files (None: the main one), as the manifest says it is. Raises BundleError."""
        path = path or self.path
        entry = next((f for f in self.files if Path(self.root, f.path) == path), None)
        if entry is None:
            try:
                return path.read_bytes()
            except OSError as error:
                raise BundleError(f"{path} cannot be read", cause=str(error)) from None
        return read_entry(entry, Path(self.root), self.archive)

    def others(self) -> list[Path]:
        """The files beside the main one."""
        paths = (Path(self.root, f.path) for f in self.files)
        return [path for path in paths if path != self.path]

    def binding(self, name: str) -> Binding:
        return self.bindings.get(name) or Binding(name)


class Bundle:
    """A bundle on disk. What is read of it is verified against the manifest, which is read once: what is
    opened later belongs to the same version, or is refused.

    `path` is what was opened, `root` the folder below which its files are found: where links led when it was
    opened, since they may lead to another version later.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.path = root
        self.root = root
        self.manifest = manifest
        self._verified: dict[str, tuple[int, ...]] = {}
        self._golden: tuple[bytes, bytes] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read and validate the manifest of the bundle at `path`, a folder or a file. Raises BundleError."""
        given = Path(path)
        root = followed(given)
        if root.is_file():
            return ArchiveBundle.of(given)
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
        bundle = cls(root, decode(file.read_bytes(), str(file)))
        bundle.path = given
        return bundle

    @property
    def name(self) -> str:
        return self.manifest.name

    def variant_files(self, variant_id: str) -> VariantFiles:
        """The verified files of one variant. Raises BundleError when a digest does not match."""
        variant = self.manifest.variant(variant_id)
        for entry in variant.files:
            self.verified_path(entry)
        return variant_files(variant, self.root, self.manifest.interface)

    def sealed_files(self, variant_id: str) -> VariantFiles:
        """The files of one variant for who reads them by `content`, where they are verified."""
        return variant_files(self.manifest.variant(variant_id), self.root, self.manifest.interface)

    def read(self, entry: FileEntry) -> bytes:
        """What is in a file of this bundle. Raises BundleError when that is not what was written."""
        return read_entry(entry, self.root)

    def verified_path(self, entry: FileEntry) -> Path:
        """The path of a file of this bundle once its size and digest are known to be right."""
        path = inside(self.root, entry)
        with self._lock:
            self._provide(entry)
            try:
                seen = _seen(path)
                if self._verified.get(entry.path) == seen:
                    return path
                size, digest = path.stat().st_size, file_sha256(path)
            except OSError as error:
                raise BundleError(f"{path} cannot be read", cause=str(error)) from None
            if (size, digest) != (entry.size_bytes, entry.sha256):
                raise _changed(str(path), entry, size, digest)
            self._verified[entry.path] = seen
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
        if self._golden is None:  # kept: they judge devices as long as this bundle is used
            self._golden = self.read(golden.inputs), self.read(golden.outputs)
        inputs, outputs = self._golden
        return (
            as_texts(arrays_in(io.BytesIO(inputs), f"{self.path}: {golden.inputs.path}")),
            as_texts(arrays_in(io.BytesIO(outputs), f"{self.path}: {golden.outputs.path}")),
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
        outputs = labelled(self.manifest.interface, len(names), self.manifest.outputs)
        return dict.fromkeys(outputs, Labels(entry.path, names))

    def _text(self, entry: FileEntry) -> str:
        return self.read(entry).decode("utf-8")

    @property
    def size_bytes(self) -> int:
        return self.manifest_bytes + sum(f.size_bytes for f in self.manifest.files())

    @property
    def manifest_bytes(self) -> int:
        return (self.root / MANIFEST_NAME).stat().st_size


class ArchiveBundle(Bundle):
    """A bundle in a file. What is read of it is read from there. `root` is a folder of this process for what
    must be a file of its own; it is made when the first one is, and removed with this object."""

    def __init__(self, path: Path, manifest: Manifest, manifest_bytes: int) -> None:
        super().__init__(path, manifest)
        self._file = followed(path)
        self._manifest_bytes = manifest_bytes
        self._scratch: Path | None = None

    def sealed_files(self, variant_id: str) -> VariantFiles:
        sealed = variant_files(
            self.manifest.variant(variant_id), self.path, self.manifest.interface
        )
        return msgspec.structs.replace(sealed, archive=str(self._file))

    def read(self, entry: FileEntry) -> bytes:
        return read_entry(entry, self.path, str(self._file))

    def variant_files(self, variant_id: str) -> VariantFiles:
        self._unpacked()
        return super().variant_files(variant_id)

    def verified_path(self, entry: FileEntry) -> Path:
        self._unpacked()
        return super().verified_path(entry)

    def _unpacked(self) -> None:
        """Make the folder. Raises WriteFailed."""
        with self._lock:
            if self._scratch is None:
                self._scratch, remove = scratch_folder()
                self.root = self._scratch
                weakref.finalize(self, remove)

    @classmethod
    def of(cls, path: Path) -> ArchiveBundle:
        """The bundle in a file. Raises BundleError when it is not an archive with a valid manifest."""
        data = manifest_in(path, MAX_MANIFEST_BYTES)
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"the manifest in {path} is larger than a manifest can be")
        return cls(path, decode(data, f"{path}: {MANIFEST_NAME}"), len(data))

    @property
    def manifest_bytes(self) -> int:
        return self._manifest_bytes

    def present(self) -> set[str]:
        return members(self.path)

    def _provide(self, entry: FileEntry) -> None:
        """Take the file out of the archive, unless it has been already."""
        destination = self.root / entry.path
        if destination.exists():
            return
        data = self.read(entry)
        partial = destination.with_name(f"{destination.name}.partial")
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.rename(destination)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise no_room(self.root, f"{entry.path} of {self.path}", len(data), error) from None


def variant_files(variant: Variant, root: Path, interface: Interface) -> VariantFiles:
    return VariantFiles(
        id=variant.id,
        path=root / variant.main,
        format=variant.format,
        precision=variant.precision,
        interface=interface,
        batch=variant.batch,
        bindings=variant.bindings,
        files=variant.files,
        root=str(root),
    )


def read_entry(entry: FileEntry, root: Path, archive: str | None = None) -> bytes:
    """What is in a file below `root`, or in an archive. Raises BundleError."""
    if archive is not None:
        where, data = f"{entry.path} in {archive}", member(Path(archive), entry)
    else:
        path = inside(root, entry)
        where = str(path)
        try:
            with path.open("rb") as file:
                data = file.read(entry.size_bytes + 1)  # no more, however long it is
        except OSError as error:
            raise BundleError(f"{path} cannot be read", cause=str(error)) from None
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (entry.size_bytes, entry.sha256):
        raise _changed(where, entry, len(data), digest)
    return data


def _seen(path: Path) -> tuple[int, ...]:
    """Changes when the file is written to or replaced."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _changed(where: str, entry: FileEntry, size: int, digest: str) -> BundleError:
    more = " or more" if size > entry.size_bytes else ""
    return BundleError(
        f"{where} is not the file the bundle was written with",
        cause=f"expected sha256 {entry.sha256[:12]}… ({entry.size_bytes} bytes), "
        f"got {digest[:12]}… ({size} bytes{more})",
        hint="copy the bundle again, or convert the model again",
    )
