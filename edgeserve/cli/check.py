"""`edgeserve check`: what will go wrong for a target, before anything is converted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.errors import UsageError
from edgeserve.tables import print_line, print_table, size_text

if TYPE_CHECKING:
    from rich.console import Console

    from edgeserve.checking import CheckReport, Finding
    from edgeserve.checking.report import EntryReport
    from edgeserve.targets.schema import Target


def register(app: typer.Typer) -> None:
    app.command(
        "check",
        short_help="Check which targets support a model.",
        epilog="Example: edgeserve check model.onnx --target intel-npu",
    )(check)


def check(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A .onnx, .tflite or OpenVINO .xml file.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A target's name or TOML file, auto (this machine) or all. May be repeated [auto]."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=N,N,…", help="Fix an input's dimensions. May be repeated."),
    ] = None,
    ops: Annotated[
        bool, typer.Option("--ops", help="List every operator, not only unsupported ones.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sarif: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the findings as SARIF 2.1.0; - is stdout."),
    ] = None,
) -> None:
    """Check which targets support a model. Exit code: 0 all do, 1 one does not, 2 wrong input."""
    from edgeserve.checking import check as run_check
    from edgeserve.checking import to_sarif
    from edgeserve.cli.output import stderr_console, write_output
    from edgeserve.cli.shapes import parse_shapes
    from edgeserve.exporting import to_json

    if json and sarif == "-":
        raise UsageError("--json and --sarif - both write to stdout", hint="--sarif FILE")
    shapes = parse_shapes(shape or [])
    with stderr_console().status("checking with the runtimes"):
        report = run_check(path, _targets(target or ["auto"]), shapes)
    if sarif is not None:
        write_output(to_json(to_sarif(report)), sarif)
    if json:
        print(to_json(report))
    elif sarif != "-":
        render(report, every_operator=ops)
    raise typer.Exit(0 if report.ok else 1)


def _targets(names: list[str]) -> list[Target]:
    from edgeserve.runtimes.detect import resolve_target
    from edgeserve.targets.schema import all_targets

    chosen = [t for n in names for t in (all_targets() if n == "all" else [resolve_target(n)])]
    return list({t.name: t for t in chosen}.values())


def render(report: CheckReport, *, every_operator: bool) -> None:
    """Targets, operators, findings, estimates; the last line is what to do next."""
    from edgeserve.cli.output import stdout_console

    console = stdout_console()
    engines = ", ".join(f"{n} {v}" for n, v in report.engines.items() if v)
    print_line(console, f"{report.path}: {report.format} ({report.version}), {report.nodes} nodes")
    print_line(console, f"asked: {engines}\n")
    _render_targets(console, report)
    _render_operators(console, report, every_operator=every_operator)
    _render_findings(console, report)
    _render_estimates(console, report)
    failed = [t.name for t in report.targets if not t.ok]
    if failed:
        print_line(console, f"not fine: {', '.join(failed)} ({report.count('error')} errors)")
    else:
        name = report.targets[0].name
        print_line(
            console, f"fine; next: edgeserve convert {report.path} --target {name} -o NAME.edge"
        )


def _render_targets(console: Console, report: CheckReport) -> None:
    rows = [
        (
            target.name if entry is target.entries[0] else "",
            f"{entry.runtime}/{entry.device}",
            " ".join(entry.precisions),
            _verdict(entry, report.nodes),
            ("yes" if target.ok else "no") if entry is target.entries[0] else "",
        )
        for target in report.targets
        for entry in target.entries
    ]
    print_table(console, ("target", "chain", "precisions", "verdict", "fine"), rows)


def _verdict(entry: EntryReport, nodes: int) -> str:
    if entry.state == "runs":
        return "runs fully" if entry.ok else "runs, but not as the target wants it"
    if entry.state == "partly":
        return f"{entry.unsupported_nodes} of {nodes} nodes fall back to the CPU"
    if entry.state == "unsupported":
        count = entry.unsupported_nodes
        return f"{count} of {nodes} nodes unsupported" if count else "refused"
    if entry.state == "no-path":
        return "no conversion available"
    return "not verified here" if entry.ok else "not verified here, and not as the target wants it"


def _render_operators(console: Console, report: CheckReport, *, every_operator: bool) -> None:
    shown = [o for o in report.operators if every_operator or "no" in o.support.values()]
    if not shown:
        return
    # A column of "unverified" alone says nothing that the first table does not say.
    engines = [
        e for e in shown[0].support if any(o.support[e] != "unverified" for o in report.operators)
    ]
    rows = [(o.op, str(o.nodes), *(o.support[e] for e in engines)) for o in shown]
    console.print()
    print_table(console, ("operator", "nodes", *engines), rows, right=("nodes",))


def _render_findings(console: Console, report: CheckReport) -> None:
    for finding in report.findings:
        about = f" ({', '.join(finding.targets)})" if finding.targets else ""
        print_line(console, f"\n{finding.level}[{finding.rule}]{about}: {finding.message}")
        if finding.nodes:
            print_line(console, f"  nodes: {_nodes(finding)}")
        if finding.hint:
            print_line(console, f"  hint: {finding.hint}")


def _nodes(finding: Finding) -> str:
    more = finding.node_count - len(finding.nodes)
    return ", ".join(finding.nodes) + (f" and {more} more" if more > 0 else "")


def _render_estimates(console: Console, report: CheckReport) -> None:
    rows = [
        (
            e.precision,
            size_text(e.size_bytes),
            "unknown" if e.peak_memory_bytes is None else size_text(e.peak_memory_bytes),
        )
        for e in report.estimates
    ]
    console.print()
    if rows:
        numbers = ("size", "peak memory")
        print_table(console, ("estimate", *numbers), rows, right=numbers)
        console.print()
