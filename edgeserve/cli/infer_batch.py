"""`edgeserve infer --batch`: every row of a source through a bundle or a server, into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import msgspec
import typer

from edgeserve.batch import (
    CONNECTIONS,
    BatchRun,
    BatchSummary,
    LabelForm,
    LocalModel,
    RemoteModel,
    ResultForm,
    RowModel,
    TensorForm,
    check_output,
    errors_path,
    is_complete,
    open_source,
)
from edgeserve.cli.asked_model import only_model, open_bundle
from edgeserve.cli.output import progress, stderr_console
from edgeserve.client import Access, connect
from edgeserve.errors import DataError, EdgeServeError, UsageError
from edgeserve.exporting import to_json
from edgeserve.preprocess import ImageLimits, ImageReader

if TYPE_CHECKING:
    from edgeserve.bundle import Preprocess


# Files of one's own: a photograph of the largest cameras fits.
_LIMITS = ImageLimits(pixels=250_000_000, bytes=1 << 30)


class BatchRequest(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    where: str
    source: Path
    output: Path | None
    outputs: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    device: str | None = None
    model: str | None = None
    version: str | None = None
    connections: int | None = None
    form: Literal["tensors", "labels"] = "tensors"
    top: int | None = None
    resume: bool = False
    force: bool = False


def infer_batch(request: BatchRequest, access: Access | None, *, json: bool) -> NoReturn:
    """Run it. Ends with exit code 1 if rows failed, else 0."""
    output = _output(request)
    if request.resume and is_complete(output):
        stderr_console().print(
            f"{output} is complete: nothing to resume", markup=False, soft_wrap=True
        )
        raise typer.Exit(1 if errors_path(output).exists() else 0)
    if not request.source.exists():
        raise DataError(f"{request.source} does not exist")
    with _model(request, access) as model:
        how = request.preprocess or model.preprocess
        source = open_source(
            request.source, model.interface, ImageReader.of(how, model.interface, _LIMITS)
        )
        for remark in source.remarks:
            stderr_console().print(remark, markup=False, soft_wrap=True)
        form = _form(request, model, how, output)
        model.ask_only(form.outputs)
        run = BatchRun(
            request.source, source, model, form, output, resume=request.resume, force=request.force
        )
        with run:
            if run.resumed:
                told = f"resuming after {run.resumed:,} rows"
                stderr_console().print(told, markup=False, soft_wrap=True)
            summary = _run(run, output)
    if json:
        print(to_json(summary))
    render(summary)
    raise typer.Exit(1 if summary.failed else 0)


def _form(
    request: BatchRequest, model: RowModel, how: Preprocess | None, output: Path
) -> ResultForm:
    if request.form == "tensors":
        if request.top is not None:
            raise UsageError("--top needs --as labels", hint="add --as labels, or leave it out")
        return TensorForm(model.interface, request.outputs, model.together)
    if request.outputs:
        raise UsageError("--output needs --as tensors", hint="leave out one of --output and --as")
    flat = output.suffix.lower() == ".csv"
    return LabelForm(model.postprocessor(how), request.top, flat=flat)


def _output(request: BatchRequest) -> Path:
    if request.output is None:
        raise UsageError("--batch needs -o FILE", hint="-o results.jsonl, .csv or .parquet")
    check_output(request.output)
    return request.output


def _model(request: BatchRequest, access: Access | None) -> RowModel:
    if access is None:
        if request.connections is not None:
            raise UsageError("--connections needs a URL", hint="leave it out for a bundle")
        return LocalModel(open_bundle(request.where), request.device)
    if request.device is not None:
        raise UsageError("--device needs a bundle", hint="leave it out for a URL")
    with connect(request.where, access) as client:
        name = request.model
        if name is None:
            name = only_model(request.where, sorted({m.name for m in client.models() if m.ready}))
        info = client.model(name, request.version)
    connections = request.connections or CONNECTIONS
    return RemoteModel(request.where, access, info, request.version, connections)


def _run(run: BatchRun, output: Path) -> BatchSummary:
    try:
        with progress() as say:
            return run.run(say)
    except KeyboardInterrupt:
        said = f"stopped after {run.progress.rows:,} rows: add --resume to continue"
        print(said, file=sys.stderr)
        raise
    except EdgeServeError as error:
        if error.hint is None:
            error.hint = f"add --resume to continue after {run.progress.rows:,} rows"
        raise


def render(summary: BatchSummary) -> None:
    """The last line, on stderr."""
    rate = f"{summary.rows_per_s:,.0f}" if summary.rows_per_s >= 10 else f"{summary.rows_per_s:.1f}"
    done = summary.rows - summary.resumed
    console = stderr_console()
    console.print(
        f"{summary.answered_by}: {done:,} rows in {summary.elapsed_s:.1f} s, {rate} rows/s",
        markup=False,
        soft_wrap=True,
    )
    text = f"wrote {summary.output}: {summary.rows - summary.failed:,} rows"
    if summary.errors is not None:
        text += f"; {summary.failed:,} failed: {summary.errors}"
    console.print(text, markup=False, soft_wrap=True)
