"""onnxruntime: CPU, and accelerators by execution providers, built in or plugged in.

onnxruntime falls back to the CPU silently when a provider cannot be opened, or takes nothing of a model;
this adapter compares what was asked with what was got and raises DeviceUnavailable instead.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeserve.bundle import VariantFiles
from edgeserve.devices.names import device_kind
from edgeserve.errors import (
    DependencyMissing,
    DeviceUnavailable,
    EdgeServeError,
    InferenceFailed,
    SourceError,
    UnsupportedModel,
    UsageError,
)
from edgeserve.runtimes.base import DeviceInfo, LoadOptions, Placement, RuntimeInfo, Session
from edgeserve.runtimes.native import NativeLog, caught_output, environment_key
from edgeserve.runtimes.onnx_bf16 import run_bf16
from edgeserve.runtimes.onnx_placement import (
    FLOAT_OPS,
    INT8_OPS,
    Kernel,
    ProfileFile,
    example_of,
    float_precision,
    placement_of,
    profile_file,
    reference_kernels,
)
from edgeserve.runtimes.onnx_providers import (
    CPU,
    LEVEL,
    PROVIDERS,
    accelerators_to_try,
    engine_words,
    hardware_name,
    installed_plug_ins,
    missing_provider,
    plug_in_devices,
    plug_in_options,
    provider_name,
    provider_options,
    refuse_elsewhere,
    session_entries,
    takes_plug_in,
)
from edgeserve.runtimes.onnx_texts import texts
from edgeserve.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    from edgeserve.runtimes.probing import Probe

_RECORD_ASSIGNMENT: Final = "session.record_ep_graph_assignment_info"
_NO_CPU: Final = "session.disable_cpu_ep_fallback"


class OnnxRuntime:
    """The `onnxruntime` runtime."""

    name = "onnxruntime"
    reads_contents = True
    formats: tuple[str, ...] = ("onnx",)
    requires: tuple[str, ...] = ("onnxruntime>=1.20",)

    def probe(self) -> RuntimeInfo:
        try:
            import onnxruntime as ort
        except ImportError as error:
            return RuntimeInfo(self.name, None, problem=str(error), hint="pip install onnxruntime")
        devices = [DeviceInfo("cpu", CPU)]
        problems = []
        for probe in self._accelerators(tuple(ort.get_available_providers()), environment_key()):
            if probe.ok:
                devices.append(DeviceInfo(probe.device, probe.provider, probe.hardware))
            else:
                problems.append(probe.error or f"{probe.provider} does not open")
        return RuntimeInfo(
            self.name, ort.__version__, tuple(devices), problem="; ".join(problems) or None
        )

    @staticmethod
    @cache
    def _accelerators(available: tuple[str, ...], environment: str) -> tuple[Probe, ...]:
        """What came of opening each accelerator here; asked again when the environment differs."""
        from edgeserve.runtimes.probing import open_in_children

        wanted = accelerators_to_try(available)
        return tuple(open_in_children([("onnxruntime", d, {"provider": p}) for d, p in wanted]))

    def version(self) -> str | None:
        """Without opening anything."""
        try:
            import onnxruntime as ort
        except ImportError:
            return None
        return str(ort.__version__)

    def load(self, model: VariantFiles, device: str, options: LoadOptions) -> Session:
        try:
            import onnxruntime as ort
        except ImportError:
            raise DependencyMissing("onnxruntime", needed_for="the runtime onnxruntime") from None
        refused: list[DeviceUnavailable] = []
        for provider in _providers(ort, device, options):
            try:
                opening = _open(ort, model, provider, device, options)
            except DeviceUnavailable as error:
                refused.append(error)
            else:
                return OnnxRuntimeSession(model, opening, device, provider, options)
        if len(refused) == 1:
            raise refused[0]
        raise DeviceUnavailable(
            f"onnxruntime cannot open '{device}'",
            cause="; ".join(str(error) for error in refused),
            hint=refused[0].hint,
        )


def _providers(ort: Any, device: str, options: LoadOptions) -> list[str]:
    """The provider that is asked for; else all there are for this kind of device, best first."""
    kind = device_kind(device)
    if kind == "cpu":
        return [CPU]
    asked = options.options.get("provider")
    wanted = (provider_name(str(asked)),) if asked else PROVIDERS.get(kind, ())
    available: list[str] = ort.get_available_providers()
    plugged = {p.provider for p in installed_plug_ins()}
    if found := [p for p in wanted if p in available or p in plugged]:
        return found
    raise missing_provider(device, wanted, available)


class _Opening:
    """A session just made, with the profile it writes of its first inference where it does."""

    def __init__(self, session: Any, hardware: str | None, profile: ProfileFile | None) -> None:
        self.session = session
        self.hardware = hardware
        self.profile = profile


class OnnxRuntimeSession:
    """One onnxruntime session. `run` scales over threads, so concurrency is the number of cores.

    On an accelerator its first inference is profiled, for `placement`.
    """

    def __init__(
        self,
        model: VariantFiles,
        opening: _Opening,
        device: str,
        provider: str,
        options: LoadOptions,
    ) -> None:
        self._model = model
        self._session = opening.session
        self._provider = provider
        self._options = options
        self._names = [spec.name for spec in model.interface.outputs]
        self._files_names = [model.binding(name).name for name in self._names]
        self._texts = [s.name for s in model.interface.inputs if s.dtype == "BYTES"]
        ports = (*model.interface.inputs, *model.interface.outputs)
        self._bf16 = {model.binding(s.name).name for s in ports if s.dtype == "BF16"}
        self._renamed = any(model.binding(s.name).name != s.name for s in model.interface.inputs)
        self._lock = threading.Lock()
        self._profile = opening.profile
        self._kernels: list[Kernel] = []
        self._takes_nothing = False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._example: Tensors | None = None  # of the CPU: the first request, for `placement`
        self.device = device
        self.hardware: str | None = opening.hardware
        self.inputs: tuple[TensorSpec, ...] = model.interface.inputs
        self.outputs: tuple[TensorSpec, ...] = model.interface.outputs
        self.concurrency = os.cpu_count() or 1

    def run(self, inputs: Tensors) -> Tensors:
        """Texts come as bytes and are UTF-8. Raises InvalidInput where one is not, InferenceFailed."""
        if self._texts:
            inputs = {n: texts(n, a) if n in self._texts else a for n, a in inputs.items()}
        if self._renamed:
            inputs = {self._model.binding(n).name: a for n, a in inputs.items()}
        try:
            if self._bf16:
                values = run_bf16(self._session, inputs, self._bf16, self._files_names)
            else:
                values = self._session.run(self._files_names, inputs)
        except Exception as error:  # its exception classes share no base but Exception
            raise InferenceFailed(
                f"onnxruntime failed on {self.device}", cause=engine_words(error)
            ) from error
        if self._example is None and self._provider == CPU:
            self._example = {n: a.copy() for n, a in inputs.items()}
        if self._profile is not None:
            self._read_profile({name: array.shape for name, array in inputs.items()})
        if self._takes_nothing:
            raise InferenceFailed(
                f"onnxruntime opened {self._provider}, which ran no part of the model",
                cause="every operation was left to the CPU",
            )
        return dict(zip(self._names, values, strict=True))

    def _read_profile(self, shapes: dict[str, tuple[int, ...]]) -> None:
        with self._lock:
            profile, self._profile = self._profile, None
            if profile is not None:
                self._shapes = shapes
                self._kernels = profile.finish(self._session)
                # Versions that do not tell at load what a provider takes tell it here.
                owners = {kernel.provider for kernel in self._kernels}
                self._takes_nothing = owners == {CPU}

    def placement(self) -> Placement:
        """Read from a profile. On the CPU that takes a second session, which runs the first request once more:
        onnxruntime tells its fused graph no other way."""
        if self._provider == CPU:
            return self._cpu_placement()
        if self._profile is not None:  # nothing has run yet
            example = example_of(self._session, {})
            with contextlib.suppress(Exception):  # made-up inputs need not fit the model
                self._session.run(None, example)
            self._read_profile({name: array.shape for name, array in example.items()})
        return placement_of(
            self._kernels,
            self._provider,
            self.device,
            reference_kernels(self._model.path, self._shapes),
            float_precision(
                self._provider, self.device, self._options.options, self._model.precision
            ),
        )

    def _cpu_placement(self) -> Placement:
        import onnxruntime as ort

        profile = profile_file()
        opening = _open(ort, self._model, CPU, self.device, self._options, profile)
        ran = False
        try:
            example = self._example or example_of(opening.session, {})
            if self._bf16:
                run_bf16(opening.session, example, self._bf16, self._files_names)
            else:
                opening.session.run(None, example)
            ran = True
        except Exception:  # noqa: S110 - made-up inputs need not fit the model
            pass
        finally:  # the session ends with this call, its profile with it
            profiled = profile.finish(opening.session) if profile else []
        kernels = profiled if ran else []
        ops = Counter(kernel.op for kernel in kernels)
        int8 = sum(ops[op] for op in INT8_OPS)
        compute = int8 + sum(ops[op] for op in FLOAT_OPS)
        precision = "int8" if int8 else "fp16" if self._model.precision == "fp16" else "fp32"
        if not kernels:
            return Placement({}, self._model.precision, 0, 0)
        macs = {"cpu": 1.0} if compute else {}
        return Placement({"cpu": 1.0}, precision, compute, int8, mac_shares=macs)

    def close(self) -> None:
        with self._lock:
            profile, self._profile = self._profile, None
        if profile is not None:
            profile.finish(self._session)
        self._session = None


def _open(
    ort: Any,
    files: VariantFiles,
    provider: str,
    device: str,
    options: LoadOptions,
    profile: ProfileFile | None = None,
) -> _Opening:
    """A session on this provider and no other. Raises DeviceUnavailable, UnsupportedModel, SourceError;
    BundleError where a file is not what the manifest says."""
    model = files.path
    settings = ort.SessionOptions()
    # What a call fails with is in the exception; of providers, stderr may hold more than that.
    settings.log_severity_level = 4 if provider == CPU else 3
    settings.intra_op_num_threads = options.threads
    entries = session_entries(options.options)
    if not options.spin:
        entries.setdefault("session.intra_op.allow_spinning", "0")
    level = options.options.get(LEVEL)
    if level is not None:
        settings.graph_optimization_level = _level(ort, str(level))
    hardware = None
    providers: list[Any] | None = [CPU]
    try:
        with _silenced(), _caught(provider) as log:
            if provider != CPU:
                refuse_elsewhere(provider, device, options.options)
                profile = profile or profile_file()
                entries.setdefault(_RECORD_ASSIGNMENT, "1")
                if options.options.get("allow_cpu") is False:
                    entries.setdefault(_NO_CPU, "1")
                plug_in = takes_plug_in(provider, ort.get_available_providers())
                if plug_in is None:
                    chosen = provider_options(provider, device, options.options)
                    whole = options.options.get("allow_cpu") is False
                    providers = [(provider, chosen)] if whole else [(provider, chosen), CPU]
                else:
                    found = plug_in_devices(plug_in, device)
                    hardware = hardware_name(found[0])
                    settings.add_provider_for_devices(found, plug_in_options(options.options))
                    providers = None
            for key, value in entries.items():
                settings.add_session_config_entry(key, value)
            if profile is not None:
                settings.enable_profiling = True
                settings.profile_file_prefix = profile.prefix
            weights: list[bytes] = []  # the session is made from them, and copies what it keeps
            source = _source(files, settings, weights) if provider == CPU else str(model)
            session = ort.InferenceSession(source, settings, providers=providers, enable_fallback=0)
            weights.clear()
            session._model_bytes = None  # it would keep them for a fallback that is off
            taken = _takes_part(session, provider)
    except EdgeServeError:
        _drop(profile)
        raise
    except Exception as error:  # its exception classes share no base but Exception
        _drop(profile)
        raise _load_error(model, provider, error) from error
    if session.get_providers()[0] != provider:
        _drop(profile)
        raise DeviceUnavailable(
            f"onnxruntime cannot open {provider}",
            cause=log.complaints() or f"it built a session on {session.get_providers()[0]} instead",
            hint="its libraries or its driver are missing: edgeserve doctor shows more",
        )
    if not taken:
        _drop(profile)
        raise DeviceUnavailable(
            f"onnxruntime opens {provider}, which accepts no part of the model",
            cause=log.complaints() or "every operation was left to the CPU",
            hint="the device is missing, or the model has no operator that the provider knows",
        )
    return _Opening(session, hardware, profile)


def _level(ort: Any, name: str) -> Any:
    """Raises UsageError for a level that onnxruntime does not have."""
    levels = ort.GraphOptimizationLevel
    known = {
        "disabled": levels.ORT_DISABLE_ALL, "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED, "all": levels.ORT_ENABLE_ALL,
    }  # fmt: skip
    if name not in known:
        raise UsageError(
            f"{LEVEL} '{name}' is not a level of onnxruntime", hint=f"levels: {', '.join(known)}"
        )
    return known[name]


def _source(files: VariantFiles, settings: Any, weights: list[bytes]) -> str | bytes:
    """What a session for the CPU is made from: the content of a bundle's files, since onnxruntime maps weights
    that lie beside the model, and those may be overwritten while it runs. `weights` get the contents that the
    settings only point to: they must live until the session is made."""
    if not files.is_sealed:
        return str(files.path)
    beside = {path.relative_to(files.path.parent).as_posix(): path for path in files.others()}
    if not beside:
        return files.content()
    if not hasattr(settings, "add_external_initializers_from_files_in_memory"):
        if files.archive is None:
            return str(files.path)
        raise UnsupportedModel(
            f"this onnxruntime cannot read weights beside {files.path.name} from an archive",
            hint="pip install --upgrade onnxruntime, or unpack the archive",
        )
    weights += [files.content(path) for path in beside.values()]
    settings.add_external_initializers_from_files_in_memory(
        list(beside), weights, [len(content) for content in weights]
    )
    return files.content()


def _takes_part(session: Any, provider: str) -> bool:
    """Whether any operation was given to the provider; True where onnxruntime does not tell."""
    if provider == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return True
    try:
        owners = {part.ep_name for part in session.get_provider_graph_assignment_info()}
    except Exception:  # of versions that do not record it
        return True
    return not owners or owners != {CPU}


def _drop(profile: ProfileFile | None) -> None:
    if profile is not None:
        profile.close()


def _load_error(model: Path, provider: str, error: Exception) -> Exception:
    text, kind = engine_words(error), type(error).__name__
    if kind in {"NotImplemented", "InvalidGraph"} or "is not a registered function/op" in text:
        return UnsupportedModel(
            f"onnxruntime cannot run {model}",
            cause=text,
            hint="another runtime may run it, or export the model with another opset",
        )
    if kind in {"InvalidProtobuf", "NoSuchFile", "NoModel", "InvalidArgument"} and provider == CPU:
        return SourceError(f"onnxruntime cannot read {model}", cause=text)
    if provider == CPU:
        return UnsupportedModel(f"onnxruntime cannot load {model}", cause=text)
    if _NO_CPU in text or "fallback to CPU EP has been explicitly disabled" in text:
        return UnsupportedModel(
            f"{provider} cannot run all of {model}",
            cause=text,
            hint="remove allow_cpu from the candidate's options to run the rest on the CPU",
        )
    return DeviceUnavailable(
        f"onnxruntime cannot open {provider}", cause=text, hint="edgeserve doctor shows more"
    )


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """onnxruntime prints and warns about providers; the same text is in our DeviceUnavailable."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _caught(provider: str) -> Iterator[NativeLog]:
    """What a provider's libraries say; the CPU's have nothing to say."""
    if provider == CPU:
        yield NativeLog()
        return
    with caught_output(passes=_is_not_onnxruntime_s) as log:
        yield log


def _is_not_onnxruntime_s(line: str) -> bool:
    return ":onnxruntime:" not in line and not line.startswith(("Warning: vk", "    at Check"))
