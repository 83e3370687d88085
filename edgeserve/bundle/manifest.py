"""The bundle manifest: what `manifest.json` holds, and nothing about files on disk.

Types are msgspec structs: decoding validates, and an error names the JSON path of the wrong field.
The format is documented in docs/bundle-format.md; `SCHEMA_VERSION` is bumped there and here together.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

import msgspec

from edgeserve.bundle.fidelity import Accuracy, Fidelity, OutputKind, OutputTolerance
from edgeserve.bundle.postprocess import Postprocess, TaskKind
from edgeserve.devices.names import device_kind, is_on
from edgeserve.errors import BundleError
from edgeserve.tensors import DTYPES, Interface, TensorSpec

SCHEMA_VERSION: Final = "1.0"
MANIFEST_NAME: Final = "manifest.json"
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Option = str | int | float | bool


class _Strict(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of manifest records. Unknown fields are ignored: a newer minor version may add some."""


class FileEntry(_Strict, frozen=True):
    """One file of the bundle; `path` is relative to the bundle, with forward slashes."""

    path: str
    sha256: str
    size_bytes: int


class Source(_Strict, frozen=True):
    """The model that was converted. `size_bytes` includes external data.

    For sources that were converted to ONNX first, `framework` ran the source and `import_error` is the
    relative RMS error of the ONNX file against it.
    """

    format: str
    file_name: str
    sha256: str
    size_bytes: int
    opset: int | None = None
    framework: str | None = None
    import_error: float | None = None


class Preprocess(_Strict, frozen=True):
    """How an image becomes the model's input tensor.

    `resize`: "crop" resizes the shorter side to `round(min(height, width) / crop_ratio)` and crops the centre to
    (height, width); "stretch" resizes to (height, width) without regard to the image's shape; "letterbox" keeps its
    shape and fills what is left with `pad`, a value from 0 to 255. Then each channel becomes
    `(pixel * scale - mean) / std` with pixels 0-255.
    """

    height: int
    width: int
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    crop_ratio: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    kind: Literal["image"] = "image"
    resize: Literal["crop", "letterbox", "stretch"] = "crop"
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114


class Task(_Strict, frozen=True):
    """What the model is for. `labels` is a text file in the bundle, one class per line. `postprocess` says how
    outputs become an answer; None: they are the answer."""

    kind: TaskKind | Literal["generic"] = "generic"
    preprocess: Preprocess | None = None
    labels: FileEntry | None = None
    postprocess: Postprocess | None = None


class Calibration(_Strict, frozen=True):
    """The data that a quantized variant was calibrated on. `random` data prove nothing about real inputs."""

    source: str
    sha256: str
    samples: int
    random: bool = False


class Recipe(_Strict, frozen=True):
    """How a variant was made, enough to make it again. `kept_fp32` names nodes left in fp32."""

    method: str
    tool: str
    scheme: str | None = None
    per_channel: bool | None = None
    calibration_method: str | None = None
    calibration: Calibration | None = None
    kept_fp32: tuple[str, ...] = ()


class Placed(_Strict, frozen=True):
    """What ran where, as the engine reports it: each device's share of the operations and, if known, of the
    multiply-accumulates; the operators that an accelerator left to the CPU, with their number."""

    shares: dict[str, float]
    mac_shares: dict[str, float] = {}
    left_on_cpu: dict[str, int] = {}


class Batching(_Strict, frozen=True):
    """The maximum number of rows that requests may share; 1: each request runs alone. `reason` gives the
    evidence in words."""

    max_batch: int
    reason: str


class Measured(_Strict, frozen=True):
    """Measurements of a variant on one runtime and machine. Times are in milliseconds, of one call with
    `threads` threads (0: the engine's choice). `batching` is the result of running rows beside hostile
    neighbours; None in older bundles."""

    runtime: str
    runtime_version: str
    device: str
    machine: str
    fidelity: Fidelity
    latency_ms: float
    speedup: float
    inference_precision: str
    int8_compute_ops: int
    compute_ops: int
    accuracy: Accuracy | None = None
    threads: int = 0
    placed: Placed | None = None
    batching: Batching | None = None


class Binding(_Strict, frozen=True):
    """The name and layout of one tensor of the interface inside a variant's file.

    `permutation` turns the interface's axes into the file's: `file = numpy.transpose(array, permutation)`.
    """

    name: str
    permutation: tuple[int, ...] | None = None


class Variant(_Strict, frozen=True):
    """One converted form of the model. `main` is the file a runtime opens; `batch` is 0 when any batch
    fits, else the one batch size the file accepts. `golden` bounds the error of each output on the golden
    samples; where it is empty, `golden_tolerance` bounds the relative RMS error of every output. `layers`
    counts layers by the precision of their weights in the file. `batching` is what the variant's own graph
    says of its rows, None where it was not read."""

    id: str
    format: str
    precision: Precision
    main: str
    files: tuple[FileEntry, ...]
    golden_tolerance: float
    batch: int = 0
    bindings: dict[str, Binding] = {}
    recipe: Recipe | None = None
    measured: tuple[Measured, ...] = ()
    layers: dict[str, int] = {}
    batching: Batching | None = None
    golden: tuple[OutputTolerance, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


class Candidate(_Strict, frozen=True):
    """One way to run the model: a variant on a runtime on a device."""

    variant: str
    runtime: str
    device: str
    static_shapes: bool = False
    options: dict[str, Option] = {}

    @property
    def label(self) -> str:
        return f"{self.runtime}/{self.device}/{self.variant}"

    @property
    def kind(self) -> str:
        """The kind of its device: `gpu` of `gpu.1`."""
        return device_kind(self.device)

    def is_on(self, device: str | None) -> bool:
        """Whether it runs on that device, or on one of that kind; None is any."""
        return is_on(self.device, device)


class Golden(_Strict, frozen=True):
    """Inputs with the fp32 source's outputs, as two `.npz` files keyed by tensor name."""

    inputs: FileEntry
    outputs: FileEntry
    samples: int


class Rejected(_Strict, frozen=True):
    """A variant that `convert` tried and did not keep, with the reason."""

    id: str
    runtime: str
    device: str
    precision: str
    reason: str
    size_bytes: int | None = None
    measured: Measured | None = None


class Manifest(_Strict, frozen=True):
    """The whole of `manifest.json`. `state` are the variables of a model that keeps a state between calls:
    each request starts from the initial one. `batching` is what the source's graph says of the rows of its
    batches; None in bundles that were written without reading it. `outputs` says what each output holds,
    by name."""

    schema_version: str
    name: str
    created: str
    target: str
    source: Source
    interface: Interface
    task: Task
    variants: tuple[Variant, ...]
    chain: tuple[Candidate, ...]
    golden: Golden
    tools: dict[str, str]
    rejected: tuple[Rejected, ...] = ()
    reference_latency_ms: float | None = None
    state: tuple[TensorSpec, ...] = ()
    batching: Batching | None = None
    outputs: dict[str, OutputKind] = {}

    def variant(self, variant_id: str) -> Variant:
        for variant in self.variants:
            if variant.id == variant_id:
                return variant
        known = ", ".join(v.id for v in self.variants)
        raise BundleError(f"the bundle has no variant '{variant_id}'", hint=f"it has {known}")

    def files(self) -> list[FileEntry]:
        """Every file the manifest names, once."""
        entries = [f for v in self.variants for f in v.files]
        entries += [self.golden.inputs, self.golden.outputs]
        if self.task.labels:
            entries.append(self.task.labels)
        return list({f.path: f for f in entries}.values())


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """Parse and validate `manifest.json`; `where` names it in errors. Raises BundleError."""
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"{where} is not a bundle manifest",
            cause=str(error),
            hint="copy the bundle again, or convert the model again",
        ) from None
    major = version.partition(".")[0]
    if major != SCHEMA_VERSION.partition(".")[0]:
        raise BundleError(
            f"{where} has schema version {version}, this edgeserve reads {SCHEMA_VERSION}",
            hint="install a newer edgeserve, or convert the model again with this one",
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{where} is damaged", cause=str(error)) from None
    _check(manifest, where)
    return manifest


class _Version(msgspec.Struct):
    schema_version: str


def _check(manifest: Manifest, where: str) -> None:
    """Check what types cannot: contained paths, known dtypes, a chain that refers to variants."""
    paths = [f.path for f in manifest.files()] + [v.main for v in manifest.variants]
    for path in paths:
        if not is_contained(path):
            raise BundleError(
                f"{where} names a file outside the bundle: {path!r}",
                hint="do not use this bundle: something other than edgeserve made or changed it",
            )
    for spec in (*manifest.interface.inputs, *manifest.interface.outputs):
        if spec.dtype not in DTYPES:
            raise BundleError(f"{where}: tensor '{spec.name}' has unknown type {spec.dtype!r}")
    ids = [v.id for v in manifest.variants]
    if len(set(ids)) != len(ids):
        raise BundleError(f"{where}: two variants share an id: {ids}")
    for variant in manifest.variants:
        if variant.main not in {f.path for f in variant.files}:
            raise BundleError(f"{where}: variant '{variant.id}' lacks its main file {variant.main}")
    if not manifest.chain:
        raise BundleError(f"{where}: the chain is empty")
    for candidate in manifest.chain:
        if candidate.variant not in ids:
            raise BundleError(f"{where}: the chain names an unknown variant '{candidate.variant}'")


def is_contained(path: str) -> bool:
    """Whether a manifest path stays inside the bundle whatever system reads it."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith("/")
        and ".." not in parts
        and "\\" not in path
        and ":" not in path
        and "\0" not in path
    )
