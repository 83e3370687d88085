"""`edgeserve targets`: the hardware edgeserve knows, and which of it this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from edgeserve.devices import Machine
    from edgeserve.runtimes.detect import EntryCheck, TargetCheck
    from edgeserve.targets.check import FileCheck
    from edgeserve.targets.schema import ChainEntry, Quantization, Target

# The command behind `targets` and `targets intel-npu`. Targets have lower-case names.
_EXPLAIN: Final = "NAME"


class _NameOrCommand(TyperGroup):
    """A group whose first word is a command of it, or else belongs to `_EXPLAIN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = [word for word in args if not word.startswith("-")]
        if words == ["list"]:  # as `env list`
            args.remove("list")
        if words[:1] != ["check"] and "--help" not in args:
            args = [_EXPLAIN, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        cls=_NameOrCommand,
        rich_markup_mode=None,
        help="List the targets, or explain one, and say whether this machine satisfies it.\n\n"
        "edgeserve targets [NAME] [--json]: NAME is a target, 'auto' or a .toml file. Without NAME, or "
        "with 'list', all targets are listed.",
        epilog="Example: edgeserve targets intel-npu",
    )
    group.command(_EXPLAIN, hidden=True, epilog="Example: edgeserve targets intel-npu")(targets)
    group.command("check", epilog="Example: edgeserve targets check my-board.toml")(check)
    app.add_typer(
        group,
        name="targets",
        short_help="List or explain targets, and whether this machine satisfies them.",
    )


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="TOML files of targets.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check target files: schema, names, runtimes, sources. Exit code: 0 valid, 1 not, 2 missing."""
    from edgeserve.exporting import to_json
    from edgeserve.runtimes import runtime_names
    from edgeserve.targets.check import check_file

    checks = [check_file(file, runtime_names()) for file in files]
    if json:
        print(to_json({"files": checks}))
    else:
        _render_checks(checks)
    return 0 if all(c.valid for c in checks) else 1


def _render_checks(checks: list[FileCheck]) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.tables import print_line, print_table

    console = stdout_console()
    rows = []
    for item in checks:
        head = (item.file, item.target or "", "yes" if item.valid else "no")
        if not item.findings:
            rows.append((*head, "", "", ""))
        for finding in item.findings:
            rows.append((*head, finding.level, finding.text, finding.hint or ""))
            head = ("", "", "")
    print_table(console, ("file", "target", "valid", "", "what", "hint"), rows)
    valid = [c for c in checks if c.valid]
    if len(valid) == len(checks):
        print_line(
            console,
            f"\nconvert for it: edgeserve convert MODEL --target {valid[0].file} -o NAME.edge",
        )
    else:
        print_line(
            console, f"\n{len(checks) - len(valid)} of {len(checks)} not valid: docs/targets.md"
        )


def targets(
    name: Annotated[
        str | None, typer.Argument(help="A target, 'auto', or a .toml file; all when left out.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the targets, or explain one, and say whether this machine satisfies it."""
    from edgeserve.cli.output import stderr_console
    from edgeserve.devices import machine
    from edgeserve.exporting import to_json
    from edgeserve.runtimes.detect import (
        check_target,
        detect_target,
        explain_target,
        probe_all,
        resolve_target,
    )
    from edgeserve.targets.schema import all_targets

    here = machine()
    chosen = [resolve_target(name)] if name not in (None, "auto") else None
    with stderr_console().status("checking which devices the runtimes open here"):
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
    from edgeserve.tables import print_line, print_table

    console = stdout_console()
    print_line(console, f"this machine: {here.describe()}\n")
    rows = [
        (
            check.target.name,
            check.target.title,
            "\n".join(_entry_text(e) for e in check.entries),
            "yes" if check.satisfied else "no",
            check.reason,
        )
        for check in checks
    ]
    print_table(console, ("target", "title", "chain", "here", "why"), rows)
    print_line(console, "\nexplain one: edgeserve targets NAME")


def _entry_text(check: EntryCheck) -> str:
    return f"{check.entry.label} {' '.join(check.entry.precisions)}"


def _render_one(here: Machine, check: TargetCheck) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.tables import print_facts, print_line, print_table

    console, target = stdout_console(), check.target
    verdict = "satisfied" if check.satisfied else "not satisfied"
    memory = target.limits.memory_mb
    facts = [
        ("target", f"{target.name}: {target.title}"),
        ("architecture", ", ".join(target.arch)),
        ("CPU", _cpu_text(target)),
        ("this machine", here.describe()),
        (verdict, check.reason),
        ("int8", _scheme_text(target.quantization)),
        ("memory", f"up to {memory} MB" if memory else "no limit"),
        ("notes", target.notes),
        ("unverified", target.unverified),
        ("more", target.url),
    ]
    print_facts(console, facts, indent=14)
    console.print()
    rows = []
    for entry_check in check.entries:
        entry = entry_check.entry
        said = entry_check.reason + (f"\nhint: {entry_check.hint}" if entry_check.hint else "")
        cells = (
            entry.label,
            " ".join(entry.precisions),
            "static" if entry.static_shapes else "any",
            " ".join([*_optional_text(entry), *(f"{k}={v}" for k, v in entry.options.items())]),
            "yes" if entry_check.ok else "no",
            said,
        )
        rows.append(cells)
    columns = ("chain", "precisions", "shapes", "options", "opens here", "what the engine says")
    print_table(console, columns, rows)
    print_line(
        console,
        f"\nconvert for it: edgeserve convert MODEL --target {target.name} -o NAME.edge",
    )


def _optional_text(entry: ChainEntry) -> list[str]:
    if not entry.optional:
        return []
    return ["where faster" if entry.networks == "any" else f"{entry.networks}, where faster"]


def _cpu_text(target: Target) -> str:
    wanted = [" or ".join(target.cpus)] if target.cpus else []
    wanted += [f.replace("|", " or ") for f in target.cpu_features]
    return ", ".join(wanted)


def _scheme_text(scheme: Quantization) -> str:
    granularity = "per channel" if scheme.per_channel else "per tensor"
    if scheme.per_channel and not scheme.per_channel_matmul:
        granularity += " (matrix products per tensor)"
    bits = " in 7 bits" if scheme.reduce_range else ""
    centre = "symmetric" if scheme.symmetric_activations else "with zero point"
    whole = ", integers throughout" if scheme.full_integer else ""
    return (
        f"weights {scheme.weight_type}{bits} {granularity}, "
        f"activations {scheme.activation_type} {centre}{whole}"
    )
