"""`edgeserve targets`: the hardware edgeserve knows, and which of it this machine is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeserve.devices import Machine
    from edgeserve.runtimes.detect import EntryCheck, TargetCheck
    from edgeserve.targets import Quantization


def register(app: typer.Typer) -> None:
    app.command("targets", epilog="Example: edgeserve targets intel-npu")(targets)


def targets(
    name: Annotated[
        str | None, typer.Argument(help="A target, 'auto', or a .toml file; all when left out.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the targets, or explain one, and say whether this machine satisfies it."""
    from edgeserve.cli.output import stderr_console, to_json
    from edgeserve.devices import machine
    from edgeserve.runtimes.detect import (
        check_target,
        detect_target,
        explain_target,
        probe_all,
        resolve_target,
    )
    from edgeserve.targets import all_targets

    here = machine()
    chosen = [resolve_target(name)] if name not in (None, "auto") else None
    with stderr_console().status("asking the runtimes what they can open here"):
        probes = probe_all()
        if name == "auto":
            chosen = [detect_target(here, probes)]
        if chosen:
            checks = [explain_target(chosen[0], here, probes)]
        else:
            checks = [check_target(target, here, probes) for target in all_targets()]
    if json:
        print(to_json({"machine": here, "targets": checks} if name is None else checks[0]))
    elif name is None:
        _render_list(here, checks)
    else:
        _render_one(here, checks[0])


def _render_list(here: Machine, checks: list[TargetCheck]) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.cli.tables import add_row, table_of

    console = stdout_console()
    console.print(f"this machine: {here.describe()}\n", soft_wrap=True)
    table = table_of("target", "title", "chain", "here", "why")
    for check in checks:
        add_row(
            table,
            check.target.name,
            check.target.title,
            "\n".join(_entry_text(e) for e in check.entries),
            "yes" if check.satisfied else "no",
            check.reason,
        )
    console.print(table)
    console.print("\nexplain one: edgeserve targets NAME", soft_wrap=True)


def _entry_text(check: EntryCheck) -> str:
    return f"{check.entry.label} {' '.join(check.entry.precisions)}"


def _render_one(here: Machine, check: TargetCheck) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.cli.tables import add_row, table_of

    console, target = stdout_console(), check.target
    verdict = "satisfied" if check.satisfied else "not satisfied"
    memory = target.limits.memory_mb
    facts = [
        ("target", f"{target.name}: {target.title}"),
        ("architecture", ", ".join(target.arch)),
        ("this machine", here.describe()),
        (verdict, check.reason),
        ("int8", _scheme_text(target.quantization)),
        ("memory", f"{memory} MB at most" if memory else "no limit"),
        ("notes", target.notes),
        ("more", target.url),
    ]
    for label, text in facts:
        if text:
            console.print(f"{label:14}{text}", soft_wrap=True, markup=False)
    console.print()
    table = table_of(
        "chain", "precisions", "shapes", "options", "opens here", "what the engine says"
    )
    for entry_check in check.entries:
        entry = entry_check.entry
        said = entry_check.reason + (f"\nhint: {entry_check.hint}" if entry_check.hint else "")
        add_row(
            table,
            entry.label,
            " ".join(entry.precisions),
            "static" if entry.static_shapes else "any",
            " ".join(f"{k}={v}" for k, v in entry.options.items()),
            "yes" if entry_check.ok else "no",
            said,
        )
    console.print(table)
    console.print(
        f"\nconvert for it: edgeserve convert MODEL --target {target.name} -o NAME.edge",
        soft_wrap=True,
    )


def _scheme_text(scheme: Quantization) -> str:
    granularity = "per channel" if scheme.per_channel else "per tensor"
    centre = "symmetric" if scheme.symmetric_activations else "with zero point"
    return (
        f"weights {scheme.weight_type} {granularity}, activations {scheme.activation_type} {centre}"
    )
