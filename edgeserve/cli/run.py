"""`edgeserve run`: serve a bundle over HTTP on this device."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.cli.output import print_line, stderr_console

if TYPE_CHECKING:
    from edgeserve.serve.started import Started


class IsolateChoice(StrEnum):
    """What --isolate takes."""

    always = "always"
    accelerators = "accelerators"
    never = "never"


class StandbyChoice(StrEnum):
    """What --standby takes."""

    auto = "auto"
    warm = "warm"
    cold = "cold"


class FallbackChoice(StrEnum):
    """What --fallback takes."""

    auto = "auto"
    never = "never"


class QueuePolicy(StrEnum):
    """What --queue-policy takes."""

    reject = "reject"
    displace = "displace"


class Readiness(StrEnum):
    """What --readiness takes."""

    all = "all"
    any = "any"


class LogFormat(StrEnum):
    """What --log-format takes."""

    text = "text"
    json = "json"


class MetricsCompat(StrEnum):
    """What --metrics-compat takes."""

    none = "none"
    triton = "triton"


def register(app: typer.Typer) -> None:
    app.command(
        "run",
        short_help="Serve a bundle on this machine.",
        help="Serve a bundle over HTTP (Open Inference Protocol v2) until SIGTERM.\n\n"
        "Example: edgeserve run model.edge --http-port 8000",
    )(command)


def command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE]...",
            help="Bundles, or a repository folder of them, unless --config names them.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="A serve.toml; its keys are these flags' names."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name [the bundle's].")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            envvar="EDGESERVE_HOST", help="Address to listen on [localhost: 127.0.0.1, ::1]."
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(envvar="EDGESERVE_HTTP_PORT", help="Port; 0 picks a free one [8000]."),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            envvar="EDGESERVE_GRPC_PORT",
            help="Serve gRPC, too, on this port; 0 picks a free one [off; Triton's is 8001].",
        ),
    ] = None,
    grpc_compression: Annotated[
        bool | None,
        typer.Option("--grpc-compression", help="Compress large answers over gRPC [off]."),
    ] = None,
    grpc_streams: Annotated[
        int | None, typer.Option(min=1, help="Streams that may be open at a time over gRPC [32].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Only candidates on this device.")] = None,
    variant: Annotated[str | None, typer.Option(help="Only candidates with this variant.")] = None,
    fallback: Annotated[
        FallbackChoice | None,
        typer.Option(help="never: fail when the first candidate does [auto]."),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="This device first; fail at start, and be not ready, unless it serves.",
        ),
    ] = None,
    isolate: Annotated[
        IsolateChoice | None,
        typer.Option(help="Which candidates run in a process of their own [accelerators]."),
    ] = None,
    standby: Annotated[
        StandbyChoice | None,
        typer.Option(help="Keep the CPU open behind an accelerator [auto: if memory allows]."),
    ] = None,
    watchdog: Annotated[
        float | None, typer.Option(help="Seconds a call in another process gets at least [2].")
    ] = None,
    open_timeout: Annotated[
        float | None, typer.Option(help="Seconds that opening a device may take [180].")
    ] = None,
    recheck: Annotated[
        float | None, typer.Option(help="Seconds between golden checks while serving; 0: none [0].")
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify", help="Every batch carries a golden sample, which must be right."),
    ] = None,
    reopen: Annotated[
        float | None,
        typer.Option(help="Seconds before a failed device is tried again; the pause grows [1]."),
    ] = None,
    isolated_memory: Annotated[
        int | None, typer.Option(help="Bytes a process of --isolate may use; 0: any [0].")
    ] = None,
    inject: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="For tests: have a device fail, like gpu:crash@100."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one call; 0 lets the engine choose [0].")
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Calls that run side by side; 0: by cores and model [0].")
    ] = None,
    spin: Annotated[
        bool | None,
        typer.Option("--spin/--no-spin", help="Idle engine threads busy-wait: quicker, hotter."),
    ] = None,
    batching: Annotated[
        bool | None,
        typer.Option("--batching/--no-batching", help="Run what queued meanwhile as one batch."),
    ] = None,
    queue: Annotated[int | None, typer.Option(help="Requests that may wait [1024].")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a request may take; 0: any [0].")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most rows of a batch; 0: the model's own [0].")
    ] = None,
    batch_delay: Annotated[
        float | None, typer.Option(help="Seconds that a request waits for company at most [0].")
    ] = None,
    preferred_batch: Annotated[
        list[int] | None,
        typer.Option(metavar="ROWS", help="A batch size to be ready for, and to fill; repeatable."),
    ] = None,
    queue_policy: Annotated[
        QueuePolicy | None,
        typer.Option(help="displace: a more important request takes a full queue's last [reject]."),
    ] = None,
    priority_levels: Annotated[
        int | None, typer.Option(help="Priorities that requests may ask for, 1 the highest [1].")
    ] = None,
    default_priority: Annotated[
        int | None, typer.Option(help="The priority of a request that asks for none [1].")
    ] = None,
    versions: Annotated[
        str | None,
        typer.Option(help="Of a repository: latest, latest:N, all, or numbers like 1,3 [latest]."),
    ] = None,
    load: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Load only this model at the start; repeatable [all]."),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Follow changes of models and --config; 0: don't [0]."
        ),
    ] = None,
    readiness: Annotated[
        Readiness | None,
        typer.Option(help="any: ready though some models fail to load [all]."),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Models in memory take no more, like 2GB [no bound]."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Keep answers to requests that come again [off]."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on one port, for tiny models [1].")
    ] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log", help="A log line for every request.")
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="What log lines are: text or json [text].")
    ] = None,
    metrics_compat: Annotated[
        MetricsCompat | None,
        typer.Option(help="triton: also the metrics that Triton has, by its names [none]."),
    ] = None,
    max_body: Annotated[int | None, typer.Option(help="Largest body in bytes [64 MiB].")] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds that requests in flight get on SIGTERM [30].")
    ] = None,
    lame_duck: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Time after SIGTERM in which /v2/health/ready is 503 and connections are accepted [0].",
        ),
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond loopback without protection.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="API keys: lines of 'infer KEY' or 'control KEY'."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="PEM", help="The server's certificate, with its chain.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Only clients with a certificate of these authorities."),
    ] = None,
    model_control: Annotated[
        bool | None, typer.Option("--model-control", help="Clients may load and unload models.")
    ] = None,
    shared_memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            help="Clients may use shared memory whose name begins with this; may be repeated.",
        ),
    ] = None,
    control_host: Annotated[
        str | None, typer.Option(help="Address of the control plane [localhost].")
    ] = None,
    control_port: Annotated[
        int | None, typer.Option(help="A port for it alone [it shares the data plane's].")
    ] = None,
    control_name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A Host name it answers to; may be repeated."),
    ] = None,
) -> int:
    from edgeserve.serve.app import serve
    from edgeserve.serve.settings.server import SettingsSource

    flags = {
        "bundle": str(bundles[0]) if bundles else None,
        "bundles": [str(b) for b in bundles[1:]] if bundles and len(bundles) > 1 else None,
        "name": name,
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "grpc_compression": grpc_compression,
        "grpc_streams": grpc_streams,
        "device": device,
        "variant": variant,
        "fallback": fallback.value if fallback is not None else None,
        "require": require,
        "isolate": isolate.value if isolate is not None else None,
        "standby": standby.value if standby is not None else None,
        "watchdog": watchdog,
        "open_timeout": open_timeout,
        "recheck": recheck,
        "verify": verify,
        "reopen": reopen,
        "isolated_memory": isolated_memory,
        "inject": inject or None,
        "threads": threads,
        "instances": instances,
        "spin": spin,
        "batching": batching,
        "queue": queue,
        "timeout": timeout,
        "max_batch": max_batch,
        "batch_delay": batch_delay,
        "preferred_batches": preferred_batch or None,
        "queue_policy": queue_policy.value if queue_policy is not None else None,
        "priority_levels": priority_levels,
        "default_priority": default_priority,
        "versions": versions,
        "load": load or None,
        "watch": watch,
        "readiness": readiness.value if readiness is not None else None,
        "memory_budget": memory_budget,
        "cache": cache,
        "workers": workers,
        "access_log": access_log,
        "log_format": log_format.value if log_format is not None else None,
        "metrics_compat": metrics_compat.value if metrics_compat is not None else None,
        "max_body": max_body,
        "drain_timeout": drain_timeout,
        "lame_duck": lame_duck,
        "insecure": insecure,
        "keys": str(keys) if keys is not None else None,
        "tls_cert": str(tls_cert) if tls_cert is not None else None,
        "tls_key": str(tls_key) if tls_key is not None else None,
        "tls_client_ca": str(tls_client_ca) if tls_client_ca is not None else None,
        "model_control": model_control,
        "shared_memory": shared_memory or None,
        "control_host": control_host,
        "control_port": control_port,
        "control_names": control_name or None,
    }

    source = SettingsSource(str(config) if config is not None else None, flags)
    settings = source.read()
    if settings.workers > 1:
        from edgeserve.serve.supervisor import serve_in_processes

        return 0 if serve_in_processes(settings, source, render) else 1
    return 0 if serve(settings, render, source.read) else 1


def render(started: Started) -> None:
    """The start-up table, on stderr: every candidate, and what became of it."""
    from edgeserve.cli.tables import add_row, table_of

    console = stderr_console()
    if started.injected:
        faults = ", ".join(started.injected)
        console.print(f"warning: faults are injected, this is a test: {faults}", markup=False)
    several = len(started.models) > 1 or bool(started.failed)
    table = table_of(
        *(("model",) if several else ()),
        "candidate", "device", "status", "load", "golden error", right=("load",),
    )  # fmt: skip
    for model in started.models:
        lead = (f"{model.name} {model.version}",) if several else ()
        if not model.attempts:
            add_row(table, *lead, "", "", "in memory when asked for", "", "")
        serving = True
        for attempt in model.attempts:
            status = attempt.error or (
                "standby, not open" if not attempt.ok else "serving" if serving else ""
            )
            serving = serving and not attempt.ok
            add_row(
                table,
                *lead,
                attempt.candidate.label,
                attempt.candidate.device + (" (own process)" if attempt.isolated else ""),
                status,
                f"{attempt.load_ms:.0f} ms" if attempt.load_ms is not None else "",
                f"{attempt.golden_error:.2g}" if attempt.golden_error is not None else "",
            )
            lead = ("",) if several else ()
    for entry in started.failed:
        add_row(table, f"{entry.name} {entry.version}", "", "", entry.reason, "", "")
    console.print(table)
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
    print_line(console, f"gRPC: {started.grpc or 'off (--grpc-port 8001 turns it on)'}")
    if started.workers > 1:
        print_line(console, f"{started.workers} worker processes share these ports")
    if started.control_url is not None:
        print_line(console, f"control plane at {started.control_url}")
    if started.also:
        print_line(console, f"also at {', '.join(started.also)}")
    example = f"/{started.models[0].name}" if started.models else ""
    print_line(console, f"try: curl {started.url}/v2/models{example}")


def _hints(started: Started) -> list[str]:
    """What to do about candidates that do not serve, once for each."""
    failed = (a for model in started.models for a in model.attempts if a.error and a.hint)
    return list(dict.fromkeys(f"hint: {a.candidate.label}: {a.hint}" for a in failed))
