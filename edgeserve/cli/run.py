"""`edgeserve run`: serve a bundle over HTTP on this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeserve.cli.flags import SettingsCommand, values_of
from edgeserve.cli.output import stderr_console
from edgeserve.tables import print_line, print_table

if TYPE_CHECKING:
    from edgeserve.serve.settings.server import Settings
    from edgeserve.serve.started import Started


def command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE]...",
            help="Bundles or a repository folder. Not needed if --config lists what to serve.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="TOML",
            help="Configuration file; its keys are the flags' names with _ for -.",
            rich_help_panel="What to serve",
        ),
    ] = None,
    **options: Any,
) -> int:
    from edgeserve.serve.app import serve
    from edgeserve.serve.settings.reading import SettingsSource

    first, more = (bundles[0], bundles[1:]) if bundles else (None, [])
    flags = values_of({"bundle": first, "bundles": more, **options})
    source = SettingsSource(str(config) if config is not None else None, flags)
    settings = source.read()
    if settings.workers > 1:
        from edgeserve.serve.supervisor import serve_in_processes

        return 0 if serve_in_processes(settings, source, render) else 1
    return 0 if serve(settings, render, source.read) else 1


def _settings() -> type[Settings]:
    from edgeserve.serve.settings.server import Settings

    return Settings


class _Run(SettingsCommand):
    """`edgeserve run`: a flag for each setting of a server."""

    function = staticmethod(command)
    settings = staticmethod(_settings)


def register(app: typer.Typer) -> None:
    @app.command(
        "run",
        cls=_Run,
        short_help="Serve a bundle on this machine.",
        help="Serve a bundle over HTTP (Open Inference Protocol v2) until SIGTERM.\n\n"
        "Example: edgeserve run model.edge --http-port 8000",
    )
    def run() -> None:
        """Its parameters, and what it does, are `_Run`'s."""


def render(started: Started) -> None:
    """The start-up table, on stderr: every candidate, and what became of it."""
    console = stderr_console()
    if started.injected:
        faults = ", ".join(started.injected)
        console.print(f"warning: faults are injected, this is a test: {faults}", markup=False)
    several = len(started.models) > 1 or bool(started.failed)
    rows: list[tuple[str, ...]] = []
    for model in started.models:
        lead = (f"{model.name} {model.version}",) if several else ()
        if not model.attempts:
            rows.append((*lead, "", "", "loaded on demand", "", ""))
        serving = True
        for attempt in model.attempts:
            status = attempt.error or (
                "standby, not open" if not attempt.ok else "serving" if serving else ""
            )
            serving = serving and not attempt.ok
            cells = (
                *lead,
                attempt.candidate.label,
                attempt.candidate.device + (" (isolated)" if attempt.isolated else ""),
                status,
                f"{attempt.load_ms:.0f} ms" if attempt.load_ms is not None else "",
                f"{attempt.golden_error:.2g}" if attempt.golden_error is not None else "",
            )
            rows.append(cells)
            lead = ("",) if several else ()
    rows += [(f"{e.name} {e.version}", "", "", e.reason, "", "") for e in started.failed]
    columns = (*["model"] * several, "candidate", "device", "status", "load", "golden error")
    print_table(console, columns, rows, right=("load",))
    print_line(console, "")
    for hint in _hints(started):
        print_line(console, hint)
    for model in started.models:
        how = "on the event loop" if model.inline else f"{model.instances} instance(s)"
        ways = ", ".join(filter(None, (how, model.batching)))
        print_line(console, f"serving {model.name} at {started.url} ({ways})")
        if model.placement is not None:
            print_line(console, f"placement of {model.name}: {model.placement}")
    print_line(console, f"status page: {started.url}/status")
    print_line(console, f"protocols: {', '.join(started.protocols)}")
    print_line(console, f"gRPC: {started.grpc or 'off (--grpc-port 8001 turns it on)'}")
    if started.workers > 1:
        print_line(console, f"{started.workers} worker processes share these ports")
    if started.control_url is not None:
        print_line(console, f"control plane at {started.control_url}")
    if started.also:
        print_line(console, f"also at {', '.join(started.also)}")
    print_line(console, f"try: {_example(started)}")


def _example(started: Started) -> str:
    """A first request."""
    if not started.models:
        return f"curl {started.url}/v2/models"
    first = started.models[0]
    path = f"{started.url}/v2/models/{first.name}"
    return f"curl --data-binary @photo.jpg {path}/predict" if first.takes_images else f"curl {path}"


def _hints(started: Started) -> list[str]:
    """What to do about candidates that do not serve, once for each."""
    failed = (a for model in started.models for a in model.attempts if a.error and a.hint)
    return list(dict.fromkeys(f"hint: {a.candidate.label}: {a.hint}" for a in failed))
