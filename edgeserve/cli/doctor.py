"""`edgeserve doctor`: what this machine has, what of it opens, and what is in the way."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeserve.devices.accelerators import Accelerator
    from edgeserve.diagnosis import Diagnosis
    from edgeserve.runtimes.probing import Probe


def register(app: typer.Typer) -> None:
    app.command(
        "doctor",
        short_help="Show what is installed and which devices open.",
        epilog="Example: edgeserve doctor --require gpu",
    )(doctor)


def doctor(
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE", help="Fail unless cpu, gpu or npu opens. May be repeated [none]."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Time limit in seconds for opening a device.")
    ] = 20.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show what is installed, which devices open (each runs a tiny model in its own process), what
    conflicts, and the command that fixes it. Exit code: 0 fine, 1 something expected does not work."""
    from edgeserve.cli.output import stderr_console
    from edgeserve.diagnosis import diagnose
    from edgeserve.exporting import to_json

    required = tuple(require or ())
    for device in required:
        if device not in ("cpu", "gpu", "npu"):
            raise UsageError(f"'{device}' is not a kind of device", hint="cpu, gpu or npu")
    if timeout <= 0:
        raise UsageError(f"--timeout {timeout:g} is not a valid time limit")
    with stderr_console().status("opening every device"):
        found = diagnose(required, timeout)
    if json:
        print(to_json({"ok": found.ok, **_fields(found)}))
    else:
        render(found)
    return 0 if found.ok else 1


def _fields(found: Diagnosis) -> dict[str, object]:
    return {name: getattr(found, name) for name in found.__struct_fields__}


def render(found: Diagnosis) -> None:
    """The machine, what opens, what is installed, readings, findings; the last line says what to do."""
    from edgeserve.cli.output import stdout_console

    console = stdout_console()
    _say(console, f"edgeserve {found.edgeserve}, Python {found.python}")
    _say(console, f"machine       {found.machine.describe()}")
    _say(console, f"memory        {_memory(found)}")
    if found.cpu_quota is not None:
        _say(console, f"container     limited to {found.cpu_quota:g} cores")
    _say(console, f"accelerators  {_nodes(found.accelerators)}")
    _say(console, f"drivers       {_libraries(found)}\n")
    _render_probes(console, found.probes)
    _say(console, f"\ninstalled     {', '.join(f'{p.name} {p.version}' for p in found.packages)}")
    for reading in found.readings:
        _say(console, f"{reading.kind:14}{reading.name}: {reading.text()}")
    for finding in found.findings:
        _say(console, f"\n{finding.level}: {finding.text}")
        if finding.command:
            _say(console, f"  {finding.command}")
    console.print()
    if found.ok:
        _say(console, "fine; next: edgeserve convert MODEL -o NAME.edge")
    else:
        errors = [f for f in found.findings if f.level == "error"]
        mended = "; the commands above fix them" if any(f.command for f in errors) else ""
        _say(console, f"not fine: {len(errors)} error{'s' * (len(errors) > 1)}{mended}")


def _memory(found: Diagnosis) -> str:
    from edgeserve.tables import size_text

    memory = found.memory
    parts = []
    if memory.available is not None and memory.total is not None:
        parts.append(f"{size_text(memory.available)} of {size_text(memory.total)} free")
    if memory.limit is not None:
        parts.append(f"container limit {size_text(memory.limit)}")
    return ", ".join(parts) or "unknown"


def _nodes(nodes: tuple[Accelerator, ...]) -> str:
    return "; ".join(f"{n.kind} {n.node}: {n.describe()}" for n in nodes) or "none found"


def _libraries(found: Diagnosis) -> str:
    there = [f"{api} ({file})" for api, file in found.libraries.items() if file]
    absent = [api for api, file in found.libraries.items() if not file]
    text = ", ".join(there) or "none"
    if found.libraries.get("Vulkan"):
        text += f", {len(found.vulkan)} Vulkan driver{'s' * (len(found.vulkan) != 1)}"
    return f"{text}; not there: {', '.join(absent)}" if absent else text


def _render_probes(console: Console, probes: tuple[Probe, ...]) -> None:
    from edgeserve.tables import print_table

    rows = [
        (
            probe.runtime,
            probe.device,
            probe.provider.removesuffix("ExecutionProvider"),
            "yes" if probe.ok else "no",
            f"{probe.load_ms:.0f} ms" if probe.load_ms is not None else "",
            f"{probe.run_ms:.1f} ms" if probe.run_ms is not None else "",
            probe.hardware or "",
            probe.placement or "",
        )
        for probe in probes
    ]
    columns = ("runtime", "device", "by", "opens", "load", "run", "hardware", "runs")
    print_table(console, columns, rows, right=("load", "run"))
    for probe in probes:
        if words := _words(probe):
            _say(console, f"\n{_label(probe)}: {words}")


def _label(probe: Probe) -> str:
    provider = probe.provider.removesuffix("ExecutionProvider")
    return f"{probe.runtime}/{probe.device}" + (f" by {provider}" if provider else "")


def _words(probe: Probe) -> str:
    """The engine's own: why it did not open, or what it complained about."""
    text = "" if probe.ok else probe.error or "does not open"
    if probe.said and probe.said not in text:
        text = f"{text} ({probe.said})" if text else probe.said
    # Engines name files by their whole path, several to a message.
    return re.sub(r"[^\s\"']*/site-packages/", "…/", text)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
