"""`edgeserve status`: whether a server is ready, what it serves on which device, and what it has done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.access import Ca, Certificate, CertificateKey, KeyEnv, Timeout, access_from

if TYPE_CHECKING:
    from rich.console import Console

    from edgeserve.client import Client, InsteadOf, ModelStatus, ServerStatus, WorkerStatus


# Shown for models whose requests run one at a time because their rows would affect each other.
_ALONE = "one at a time: rows"


def register(app: typer.Typer) -> None:
    app.command(
        "status",
        short_help="Show whether a server is ready, and its counters.",
        help="Show a server's readiness, models and counters; exit 0 ready, 1 not, 3 unreachable.\n\n"
        "Example: edgeserve status http://localhost:8000",
    )(command)


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    key_env: KeyEnv = None,
    ca: Ca = None,
    cert: Certificate = None,
    cert_key: CertificateKey = None,
    timeout: Timeout = 10.0,
) -> int:
    from edgeserve.client import connect
    from edgeserve.exporting import to_json

    with connect(url, access_from(key_env, ca, cert, cert_key, timeout)) as client:
        status = read_status(url, client)
    if json:
        print(to_json(status))
    else:
        render(status)
    return 0 if status.ready else 1


def read_status(url: str, client: Client) -> ServerStatus:
    from edgeserve.client import ServerStatus

    server = client.server()
    return ServerStatus(
        url=url,
        server=f"{server.name} {server.version}",
        ready=client.ready(),
        models=tuple(client.models()),
        workers=tuple(client.workers()),
    )


def render(status: ServerStatus) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.tables import print_line, print_table

    console = stdout_console()
    word = "not ready"
    if status.ready:
        word = "degraded" if any(_degraded(m) for m in status.models) else "ready"
    console.print(f"{status.url}  {status.server}, {word}\n", markup=False)
    numbers = ("answered", "failed", "batches", "queue ms", "compute ms", "total ms")
    rows = [(m.name, m.version, _state(m), _where(m), *_numbers(m)) for m in status.models]
    if rows:
        columns = ("model", "version", "state", "serves on", *numbers)
        print_table(console, columns, rows, right=numbers)
    else:
        console.print("no models")
    lost = (f"{m.name}: {_instead(m.instead_of)}" for m in status.models if m.instead_of)
    for line in dict.fromkeys(lost):
        print_line(console, f"\n{line}")
    for model in status.models:
        if model.batching.startswith(_ALONE):
            print_line(console, f"\n{model.name}: {model.batching}")
    _render_workers(console, status.workers)


def _render_workers(console: Console, workers: tuple[WorkerStatus, ...]) -> None:
    if not workers:
        return
    from edgeserve.tables import print_line

    ready = sum(w.ready for w in workers)
    print_line(console, f"\n{ready} of {len(workers)} workers are ready")
    for worker in workers:
        if not worker.ready:
            why = f": {worker.reason}" if worker.reason else ""
            print_line(console, f"worker {worker.worker} is not ready{why}")


def _degraded(model: ModelStatus) -> bool:
    """Whether it serves, but not on the first candidate of its chain."""
    return model.ready and model.instead_of is not None


def _state(model: ModelStatus) -> str:
    word = "degraded" if _degraded(model) else "ready" if model.ready else "not ready"
    return f"{word}: {model.reason}" if model.reason else word


def _instead(first: InsteadOf) -> str:
    hint = f" (hint: {first.hint})" if first.hint else ""
    again = "" if first.retry_s is None else f"; it is tried again in {first.retry_s:.0f} s"
    return f"{first.candidate} does not serve: {first.reason}{hint}{again}"


def _where(model: ModelStatus) -> str:
    where = model.where
    return "/".join(filter(None, (where.runtime, where.device, where.variant)))


def _numbers(model: ModelStatus) -> tuple[str, ...]:
    counted = model.statistics
    if counted is None:
        return ("",) * 6
    times = (counted.queue_ms, counted.compute_ms, counted.total_ms)
    counts = (counted.succeeded, counted.failed, counted.batches)
    return (*map(str, counts), *(f"{t:.3f}" for t in times))
