"""What there is to serve: the bundles that settings name, those below a repository folder, and those in the folders
that TF Serving's model config file names.

A repository folder holds `NAME.edge`, or `NAME/VERSION/` (or `NAME/model/`) with a bundle in it, and beside the
versions, where it was made for Triton, a `config.pbtxt` and label files. Nothing outside the folder is read through it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle import Bundle, Labels
from edgeserve.bundle.labels import names_in
from edgeserve.bundle.manifest import MANIFEST_NAME
from edgeserve.errors import BundleError, EdgeServeError, UsageError
from edgeserve.names import NAME, composed
from edgeserve.serve.settings.model import ModelTable
from edgeserve.serve.settings.pbtxt import FILE_NAME, TritonConfig, read_config
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.tfserving import read_models
from edgeserve.serve.settings.versions import Latest, VersionPolicy

log = logging.getLogger(__name__)

_SUFFIX: Final = ".edge"
_VERSION: Final = re.compile(r"[1-9]\d{0,17}")  # TF Serving's are often times
_MAX_LABELS: Final = 16 << 20
# Where Amazon SageMaker's multi-model endpoints put the only version of a model.
_CLOUD_FOLDER: Final = "model"


Key = tuple[str, str]  # a model's name and version


class ModelSource(msgspec.Struct, frozen=True):
    """One version of one model on disk. `fingerprint` changes with the files; `labels` are those that
    config.pbtxt names, by output; `problem` says why it cannot be loaded."""

    name: str
    version: str
    path: str
    settings: Settings
    policy: VersionPolicy = VersionPolicy(latest=Latest())
    fingerprint: tuple[str, ...] = ()
    labels: dict[str, Labels] = {}
    problem: str | None = None

    @property
    def key(self) -> Key:
        return self.name, self.version

    def loads_as(self, other: ModelSource) -> bool:
        """Whether loading the two gives the same."""
        return (
            self.path == other.path
            and self.fingerprint == other.fingerprint
            and self.labels == other.labels
            and self.problem == other.problem
            and self.settings.for_model() == other.settings.for_model()
        )


def find_sources(settings: Settings) -> list[ModelSource]:
    """Every model to serve. What is wrong with one is in its `problem`.

    Raises UsageError when two have the same name and version, or the repository folder is none.
    """
    sources = [_bundle(Path(path), settings.name, settings) for path in _named(settings)]
    sources += [_bundle(Path(m.bundle), m.name, settings.of(m)) for m in settings.model if m.bundle]
    for folder in _folders(settings):
        sources += _in_repository(folder, settings)
    if settings.tf_model_config is not None:
        tables = _of_folders(settings)
        for model in read_models(Path(settings.tf_model_config)):
            own = settings.of(tables.get(model.name, ModelTable()))
            sources += _versions(model.name, model.folder, own, model.versions)
    seen: dict[tuple[str, str], ModelSource] = {}
    for source in sources:
        other = seen.setdefault((source.name, source.version), source)
        if other is not source:
            raise UsageError(
                f"two models are called '{source.name}'",
                cause=f"{other.path} and {source.path}",
                hint="name them in [[model]] tables",
            )
    return sources


def is_repository(path: Path) -> bool:
    """Whether a path that was named is a folder of models, and not a bundle."""
    return path.is_dir() and not (path / MANIFEST_NAME).exists() and path.suffix != _SUFFIX


def _named(settings: Settings) -> Iterator[str]:
    paths = ([] if settings.bundle is None else [settings.bundle]) + list(settings.bundles)
    return (path for path in paths if not is_repository(Path(path)))


def _folders(settings: Settings) -> Iterator[Path]:
    if settings.repository is not None:
        if not Path(settings.repository).is_dir():
            raise UsageError(f"the repository {settings.repository} is not a folder")
        yield Path(settings.repository)
    for path in ([] if settings.bundle is None else [settings.bundle]) + list(settings.bundles):
        if is_repository(Path(path)):
            yield Path(path)


def _of_folders(settings: Settings) -> dict[str | None, ModelTable]:
    """The tables about models of folders, by name."""
    return {m.name: m for m in settings.model if m.bundle is None}


def _bundle(path: Path, name: str | None, settings: Settings) -> ModelSource:
    """A bundle that settings name; its problems are raised when it is opened."""
    if name is None:
        try:
            name = Bundle.open(path).name
        except EdgeServeError:
            name = composed(path.name.removesuffix(_SUFFIX))
        if not NAME.fullmatch(name):
            return ModelSource(
                _harmless(name),
                "1",
                str(path),
                settings,
                problem=f"'{name}' cannot be a model's name",
            )
    return ModelSource(name, "1", str(path), settings, fingerprint=_fingerprint(path))


def _in_repository(folder: Path, settings: Settings) -> Iterator[ModelSource]:
    tables = _of_folders(settings)
    root = folder.resolve()
    found: dict[str, list[ModelSource]] = {}
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        whole = child.name.endswith(_SUFFIX) or (child / MANIFEST_NAME).is_file()
        if not whole and not child.is_dir():
            continue  # a README, say
        name = composed(child.name.removesuffix(_SUFFIX) if whole else child.name)
        own = settings.of(tables.get(name, ModelTable()))
        if not NAME.fullmatch(name):
            problem = f"'{_harmless(name)}' cannot be a model's name"
            models = [ModelSource(_harmless(name), "1", str(child), own, problem=problem)]
        elif not child.resolve().is_relative_to(root):
            problem = "it leads out of the repository"
            models = [ModelSource(name, "1", str(child), own, problem=problem)]
        elif whole:
            models = [ModelSource(name, "1", str(child), own, fingerprint=_fingerprint(child))]
        else:
            models = _versions(name, child, own)
        if name in found:
            log.warning("%s: skipped, a model named '%s' exists already", child, name)
            continue
        found[name] = models
        yield from models


def _versions(
    name: str, folder: Path, settings: Settings, chosen: VersionPolicy | None = None
) -> list[ModelSource]:
    """The versions of one model, in a folder of its own, that `chosen` or else its version policy chooses."""
    if not folder.is_dir():
        problem = f"{folder} is not a folder"
        return [ModelSource(name, "1", str(folder), settings, problem=problem)]
    root = folder.resolve()
    try:
        config = _config(folder / FILE_NAME, root)
        policy = VersionPolicy.parse(settings.versions)
        if config is not None:
            if config.name not in (None, "", name):
                raise UsageError(f"config.pbtxt names '{config.name}', its folder '{name}'")
            policy, settings = config.versions or policy, settings.changed(config.settings)
            settings.check_model()
        policy = chosen or policy
        labels = _labels(folder, root, config)
    except UsageError as error:
        return [ModelSource(name, "1", str(folder), settings, problem=str(error))]
    if config is not None and config.ignored:
        log.info("%s: without effect: %s", folder / FILE_NAME, ", ".join(config.ignored))
    there = {v.name: v for v in folder.iterdir() if _VERSION.fullmatch(v.name) and v.is_dir()}
    if not there and (folder / _CLOUD_FOLDER).is_dir():
        there = {"1": folder / _CLOUD_FOLDER}
    sources = []
    for version in policy.chosen(there):
        path = there.get(version, folder / version)
        source = ModelSource(name, version, str(path), settings, policy, labels=labels)
        try:
            inner = _inside(path, root)
        except BundleError as error:
            sources.append(msgspec.structs.replace(source, problem=str(error)))
            continue
        prints = (*_fingerprint(inner), *_fingerprint(folder / FILE_NAME))
        sources.append(msgspec.structs.replace(source, path=str(inner), fingerprint=prints))
    if not sources:
        return [ModelSource(name, "1", str(folder), settings, policy, problem="it has no version")]
    return sources


def _inside(version: Path, root: Path) -> Path:
    """The bundle that a version's folder is or holds. Raises BundleError."""
    if not version.resolve().is_relative_to(root):
        raise BundleError(f"version {version.name} leads out of the model's folder")
    if (version / MANIFEST_NAME).is_file():
        return version
    bundles = sorted(version.glob(f"*{_SUFFIX}")) if version.is_dir() else []
    if len(bundles) != 1:
        what = f"{len(bundles)} bundles" if bundles else "no bundle"
        if (version / "saved_model.pb").is_file():
            what = "a SavedModel, not a bundle: convert it with edgeserve convert"
        raise BundleError(f"version {version.name} holds {what}")
    if not bundles[0].resolve().is_relative_to(root):
        raise BundleError(f"version {version.name} leads out of the model's folder")
    return bundles[0]


def _config(file: Path, root: Path) -> TritonConfig | None:
    if not file.is_file():
        return None
    if not file.resolve().is_relative_to(root):
        raise UsageError("config.pbtxt leads out of the model's folder")
    return read_config(file)


def _labels(folder: Path, root: Path, config: TritonConfig | None) -> dict[str, Labels]:
    """The class names of each output that has some. Raises UsageError."""
    found = {}
    for output, name in (config.labels if config is not None else {}).items():
        file = folder / name
        if not file.resolve().is_relative_to(root):
            raise UsageError(f"label_filename of '{output}' leads out of the model's folder")
        try:
            if file.stat().st_size > _MAX_LABELS:
                raise UsageError(f"label_filename of '{output}' is too large")
            found[output] = Labels(name, names_in(file.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"label_filename of '{output}' cannot be read: {error}") from None
    return found


def _fingerprint(path: Path) -> tuple[str, ...]:
    """Changes when the bundle or file is replaced."""
    file = path / MANIFEST_NAME if path.is_dir() else path
    try:
        stat = file.stat()
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if stat.st_size < 1 << 20 else ""
    except OSError:
        return (str(path), "absent")
    return (str(path), str(stat.st_mtime_ns), str(stat.st_size), str(stat.st_ino), digest)


def _harmless(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:128] or "_"
