"""Any source, read: through ONNX where no runtime opens its own format; and its session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgeserve.bundle import Source
from edgeserve.bundle.manifest import Option
from edgeserve.conversion.options import Options
from edgeserve.conversion.sources.class_names import class_names
from edgeserve.conversion.sources.importing import Imported, source_digest, to_onnx
from edgeserve.conversion.sources.kinds import output_kinds
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.conversion.sources.native import NATIVE, open_native, read_native
from edgeserve.conversion.sources.onnx import kept_on_disk, open_reference, read_onnx
from edgeserve.conversion.tools.registry import converter_called, run_converter
from edgeserve.errors import UsageError
from edgeserve.formats.detect import detect_format
from edgeserve.formats.onnx_weights import save_onnx
from edgeserve.progress import Say
from edgeserve.runtimes import Session


def read_source(path: Path, options: Options, work: Path, say: Say) -> SourceModel:
    """The source with what its outputs hold, its weights on disk below `work`, an existing folder.

    Raises SourceError, UnsupportedModel, UsageError (options that do not fit it), and what converters raise.
    """
    model = kept_on_disk(_read(path, options, work, say), work / "source")
    names = [s.name for s in model.interface.outputs]
    for name in options.min_sqnr_of:
        if name not in names:
            raise UsageError(
                f"--min-sqnr: the model has no output '{name}'",
                hint=f"its outputs are {', '.join(names)}",
            )
    if model.labels is None and options.labels is None:
        model = _with_names(model, work)
    labels = model.labels if options.labels is None else Path(options.labels)
    kinds = output_kinds(
        model.interface,
        model.proto,
        asked=options.output_kinds,
        labels=labels,
        labelled=options.evaluate is not None,
    )
    return msgspec.structs.replace(model, kinds=kinds)


def _with_names(model: SourceModel, work: Path) -> SourceModel:
    """The model with the class names that its file brings along, as a file below `work`."""
    names = class_names(model.path, model.format, model.proto, model.interface)
    if not names:
        return model
    file = work / "class-names.txt"
    file.write_text("".join(f"{name}\n" for name in names), "utf-8", newline="\n")
    return msgspec.structs.replace(model, labels=file)


def open_source(
    model: SourceModel, threads: int = 0, options: Mapping[str, Option] | None = None
) -> Session:
    """The source itself on a CPU, computing in f32, with `threads` per call (0: the engine's choice).

    Raises what the runtime's `load` raises.
    """
    if model.file is None:
        return open_native(model, threads)
    return open_reference(model, model.file, threads, options)


def _read(path: Path, options: Options, work: Path, say: Say) -> SourceModel:
    format_name = detect_format(path)
    if format_name in NATIVE:
        if options.shapes:
            raise UsageError(f"--shape does not work on {format_name} sources")
        return read_native(path, format_name)
    imported = to_onnx(path, format_name, options, work, say)
    model = read_onnx(imported.onnx, imported.shapes)
    if options.simplify:
        model = _simplified(model, options, work, say)
    return model if format_name == "onnx" else _described(model, path, format_name, imported)


def _simplified(model: SourceModel, options: Options, work: Path, say: Say) -> SourceModel:
    """The same function in fewer nodes; the converter verifies that. What describes the source stays."""
    folder = work / "simplified"
    (folder / "out").mkdir(parents=True)
    whole = save_onnx(model.proto, folder / "model.onnx")[0]
    say("simplifying", None)
    file = run_converter(
        converter_called("onnx-slim"), whole, folder / "out", {},
        tool_env=options.tool_env, say=say,
    )[0]  # fmt: skip
    smaller = read_onnx(file)
    return msgspec.structs.replace(smaller, path=model.path, source=model.source)


def _described(model: SourceModel, path: Path, format_name: str, imported: Imported) -> SourceModel:
    """The model with what describes the user's file, not the ONNX file made from it."""
    sha256, size = source_digest(path)
    verified = imported.verification
    source = Source(
        format_name,
        path.name,
        sha256,
        size,
        opset=model.source.opset,
        framework=f"{verified.framework} {verified.framework_version}" if verified else None,
        import_error=verified.relative_rms_error if verified else None,
    )
    labels = imported.onnx.parent / "labels.txt"
    return msgspec.structs.replace(
        model, path=path, source=source, labels=labels if labels.is_file() else None
    )
