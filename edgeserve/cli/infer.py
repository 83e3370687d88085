"""`edgeserve infer`: ask a server, or a bundle on this device."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeserve.cli.access import Ca, Certificate, CertificateKey, KeyEnv, Timeout, access_from

if TYPE_CHECKING:
    from edgeserve.bundle import Postprocess, Preprocess
    from edgeserve.cli.scores import Inferred
    from edgeserve.client import Access, Answer, Question
    from edgeserve.preprocess import Frame
    from edgeserve.tensors import Array, Interface

_STDOUT = Path("-")
_TOP = 5


class AnswerKind(StrEnum):
    """What the results of --batch hold."""

    tensors = "tensors"
    labels = "labels"


def register(app: typer.Typer) -> None:
    app.command(
        "infer",
        short_help="Run a model on a server, or in a bundle on this device.",
        help="Run a model on a server or in a bundle, on .npz, .npy, JSON, images or stdin.\n\n"
        "Example: edgeserve infer http://localhost:8000 cat.jpg --top 3\n\n"
        "Example: edgeserve infer cats.edge --batch photos/ -o results.jsonl",
    )(command)


def command(
    where: Annotated[str, typer.Argument(metavar="URL|BUNDLE", help="A server, or a bundle.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help=".npz, .npy, .json, images, or - for stdin."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name, if the server has several.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="The model's version [newest].")] = None,
    wanted: Annotated[
        list[str] | None, typer.Option("--output", metavar="NAME", help="Print only this output.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help=f"Best classes to show [{_TOP} of class scores].")
    ] = None,
    preprocess: Annotated[
        Path | None,
        typer.Option(
            metavar="TOML", help="Preprocessing of images, if the model does not define it."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="With a bundle: run only on this device.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "-o",
            metavar="FILE",
            help="Write the outputs to this .npz; - is stdout. With --batch: .jsonl, .csv, .parquet.",
        ),
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Run every row of a folder, .csv, .jsonl, .parquet or .npy; -o names the results.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --batch: continue a run that was stopped.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --batch: replace results that exist.")
    ] = False,
    as_: Annotated[
        AnswerKind,
        typer.Option("--as", help="With --batch: write output tensors, or labels and boxes."),
    ] = AnswerKind.tensors,
    connections: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="With --batch and a URL: requests sent at a time [8]."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    key_env: KeyEnv = None,
    ca: Ca = None,
    cert: Certificate = None,
    cert_key: CertificateKey = None,
    timeout: Timeout = 30.0,
) -> None:
    from edgeserve.cli.images import preprocess_from
    from edgeserve.cli.scores import inferred
    from edgeserve.client import is_url
    from edgeserve.errors import UsageError
    from edgeserve.exporting import to_json

    how = preprocess_from(preprocess, {})
    outputs = tuple(wanted or ())
    if batch is not None:
        from edgeserve.cli.infer_batch import BatchRequest, infer_batch

        if inputs:
            raise UsageError(
                f"--batch {batch} has the inputs: leave out {inputs[0]}",
                hint="edgeserve infer BUNDLE --batch PATH -o FILE",
            )
        infer_batch(
            BatchRequest(
                where, batch, save, outputs, how, device, model, version, connections,
                as_.value, top, resume=resume, force=force,
            ),
            access_from(key_env, ca, cert, cert_key, timeout) if is_url(where) else None,
            json=json,
        )  # fmt: skip
    _refuse_batch_flags(
        {
            "--resume": resume,
            "--force": force,
            "--as": as_ is not AnswerKind.tensors,
            "--connections": connections is not None,
        }
    )
    if not inputs:
        raise UsageError("missing argument 'INPUT...'", hint="edgeserve infer --help")
    if is_url(where):
        access = access_from(key_env, ca, cert, cert_key, timeout)
        asked = _ask_server(where, access, model, version, inputs, outputs, how)
    else:
        asked = _ask_bundle(where, device, inputs, outputs, how)
    answer = asked.answer
    if save is not None:
        _save(answer, save)
    if save == _STDOUT:
        return
    seen = () if outputs else asked.seen(top)
    result = inferred(
        answer, asked.labels, asked.elapsed_ms, top or _TOP, chosen=top is not None, answers=seen
    )
    if json:
        print(to_json(result))
    else:
        render(result, save)


def _refuse_batch_flags(given: dict[str, bool]) -> None:
    from edgeserve.errors import UsageError

    for flag, is_given in given.items():
        if is_given:
            raise UsageError(f"{flag} needs --batch", hint="edgeserve infer --help")


@dataclass(frozen=True)
class _Answered:
    """An answer, and what turns it into one for people."""

    answer: Answer
    labels: dict[str, tuple[str, ...]]
    elapsed_ms: float
    postprocess: Postprocess | None
    interface: Interface
    preprocess: Preprocess | None
    class_names: Sequence[str]
    frames: tuple[Frame, ...]

    def seen(self, top: int | None) -> tuple[Any, ...]:
        """What the bundle's postprocess makes of the outputs; nothing if it has none."""
        from edgeserve.bundle import Task
        from edgeserve.postprocess import AnswerOptions, Postprocessor

        if self.postprocess is None:
            return ()
        task = Task("generic", self.preprocess, postprocess=self.postprocess)
        made = Postprocessor(task, self.interface, self.labels, self.class_names)
        rows = len(self.frames) or self._rows()
        return tuple(made.answers(self.answer.outputs, rows, self.frames, AnswerOptions(top_k=top)))

    def _rows(self) -> int:
        first = next(iter(self.answer.outputs.values()))
        return len(first) if self.interface.max_batch and first.ndim else 1


def _ask_server(
    url: str,
    access: Access,
    model: str | None,
    version: str | None,
    sources: list[str],
    outputs: tuple[str, ...],
    preprocess: Preprocess | None,
) -> _Answered:
    from edgeserve.cli.asked_model import only_model
    from edgeserve.cli.inputs import read_question
    from edgeserve.client import connect

    with connect(url, access) as client:
        if model is None:
            model = only_model(url, sorted({m.name for m in client.models() if m.ready}))
        info = client.model(model, version)
        how = preprocess or info.preprocess
        asked = read_question(sources, info.interface, how)
        question = _wanting(asked.question, outputs)
        began = time.perf_counter()
        parts = [
            client.infer(model, part, version)
            for part in _batches(question, info.interface.max_batch)
        ]
        elapsed_ms = 1000 * (time.perf_counter() - began)
    return _Answered(
        _joined(parts), info.labels, elapsed_ms, info.postprocess, info.interface, how,
        info.class_names, asked.frames,
    )  # fmt: skip


def _ask_bundle(
    path: str,
    device: str | None,
    sources: list[str],
    outputs: tuple[str, ...],
    preprocess: Preprocess | None,
) -> _Answered:
    from edgeserve.chain import Chain, ChainOptions
    from edgeserve.cli.asked_model import open_bundle
    from edgeserve.cli.inputs import read_question
    from edgeserve.client import Answer, Where

    bundle = open_bundle(path)
    interface = bundle.manifest.interface
    how = preprocess or bundle.manifest.task.preprocess
    asked = read_question(sources, interface, how)
    question = _wanting(asked.question, outputs)
    names = question.outputs or tuple(s.name for s in interface.outputs)
    for name in names:
        interface.output(name)
    parts: list[Answer] = []
    with Chain(bundle, ChainOptions(device=device)) as chain:
        began = time.perf_counter()
        for part in _batches(question, interface.max_batch):
            interface.check(part.inputs)
            computed, by = chain.run(part.inputs)
            found = {name: computed[name] for name in names}
            parts.append(Answer(found, bundle.name, "", Where(by.device, by.runtime, by.variant)))
        elapsed_ms = 1000 * (time.perf_counter() - began)
    labels = {output: own.names for output, own in bundle.output_labels().items()}
    return _Answered(
        _joined(parts), labels, elapsed_ms, bundle.manifest.task.postprocess, interface, how,
        bundle.labels() or (), asked.frames,
    )  # fmt: skip


def _wanting(question: Question, outputs: tuple[str, ...]) -> Question:
    import msgspec

    return msgspec.structs.replace(question, outputs=outputs) if outputs else question


def _batches(question: Question, max_batch: int) -> Iterator[Question]:
    """The question in as many requests as the model's largest batch asks for."""
    import msgspec

    rows = {array.shape[0] for array in question.inputs.values() if array.ndim}
    if not max_batch or len(rows) != 1 or max(rows) <= max_batch:
        yield question
        return
    for start in range(0, rows.pop(), max_batch):
        part = {n: a[start : start + max_batch] for n, a in question.inputs.items()}
        yield msgspec.structs.replace(question, inputs=part)


def _joined(parts: list[Answer]) -> Answer:
    import msgspec

    from edgeserve.tensors import join_batches

    return msgspec.structs.replace(parts[-1], outputs=join_batches([p.outputs for p in parts]))


def _save(answer: Answer, path: Path) -> None:
    import sys

    import numpy as np

    from edgeserve.bundle.files import write_errors

    arrays = {n: _without_objects(n, a) for n, a in answer.outputs.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    if path == _STDOUT:
        sys.stdout.buffer.write(file.getvalue())
        return
    with write_errors(path):
        path.write_bytes(file.getvalue())


def _without_objects(name: str, array: Array) -> Array:
    """Texts as fixed-width bytes: an .npz without pickle cannot hold objects. Raises UsageError."""
    import numpy as np

    from edgeserve.errors import UsageError

    if array.dtype != object:
        return array
    texts = [t if isinstance(t, bytes) else str(t).encode() for t in array.reshape(-1).tolist()]
    if any(t.endswith(b"\0") for t in texts):
        raise UsageError(
            f"output '{name}' cannot be written to an .npz",
            cause="a text ends in a NUL byte, which numpy would drop",
            hint="--json prints it",
        )
    return np.array(texts, "S").reshape(array.shape)


def render(result: Inferred, saved: Path | None) -> None:
    from edgeserve.cli.answers import print_answers
    from edgeserve.cli.output import stderr_console, stdout_console
    from edgeserve.cli.scores import shown
    from edgeserve.tables import print_table

    console = stdout_console()
    if result.answers:
        print_answers(console, result.answers)
    for output in () if result.answers else result.outputs:
        shape = ",".join(map(str, output.shape))
        heading = f"{output.name} {output.datatype}[{shape}]"
        best = [s for s in result.top if s.output == output.name]
        if not best:
            console.print(f"{heading}  {output.shown}", markup=False)
            continue
        console.print(heading, markup=False)
        labelled = any(s.label is not None for s in best)
        several = output.shape[0] > 1
        columns = (*["row"] * several, "rank", "score", "class", *["label"] * labelled)
        rows = [
            (
                *[str(s.row)] * several, str(s.rank), shown(s.score), str(s.index),
                *[s.label or ""] * labelled,
            )
            for s in best
        ]  # fmt: skip
        print_table(console, columns, rows, right=("row", "rank", "score", "class"))
    by = ", ".join(filter(None, (result.device, result.runtime, result.variant)))
    version = f" version {result.version}" if result.version else ""
    who = f"{result.model}{version} on {by}" if by else f"{result.model}{version}"
    stderr = stderr_console()
    stderr.print(f"\n{who}: {result.elapsed_ms:.1f} ms", markup=False)
    if saved is not None:
        stderr.print(f"wrote {saved}", markup=False)
