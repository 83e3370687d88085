"""`edgeserve env`: the tool environments of converters whose packages clash with others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeserve.conversion.tools.environment import EnvironmentRecord, ToolEnvironment
    from edgeserve.conversion.tools.protocol import Converter


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Manage the environments of converters that need packages of their own. `convert` creates "
        "them when needed; these commands create them in advance, list and remove them.",
        epilog="Example: edgeserve env list",
    )
    group.command(
        "list",
        short_help="List the converters and where each of them runs.",
        epilog="Example: edgeserve env list --json",
    )(list_command)
    group.command("create", epilog="Example: edgeserve env create onnx-to-tflite")(create)
    group.command(
        "download",
        short_help="Download the wheels of an environment, for a machine without a network.",
        epilog="Example: edgeserve env download onnx-to-tflite -o wheels",
    )(download)
    group.command(
        "remove",
        short_help="Remove a converter's environments.",
        epilog="Example: edgeserve env remove onnx-to-tflite",
    )(remove)
    app.add_typer(
        group, name="env", short_help="List, create and remove the environments of converters."
    )


def list_command(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the converters and where each of them runs, with environments on disk."""
    from edgeserve.conversion.tools.environment import list_environments
    from edgeserve.conversion.tools.registry import converters, runs_here
    from edgeserve.exporting import to_json

    found = converters()
    records = list_environments()
    if json:
        rows = [{"name": c.name, "requires": c.requires, "runs_here": runs_here(c)} for c in found]
        print(to_json({"converters": rows, "environments": records}))
    else:
        _render(found, records)


def create(
    name: Annotated[
        str, typer.Argument(help="A converter, or an environment that several share: scikit-learn.")
    ],
) -> None:
    """Create a converter's environment now. Offline: set EDGESERVE_WHEELHOUSE to a folder of wheels."""
    from edgeserve.cli.output import stderr_console

    environment = _environment(name)
    if environment.complete:
        print(f"{name} has its environment: {environment.path}")
        return
    with stderr_console().status(f"creating the tool environment {name}") as status:
        environment.ensure(lambda what, share: status.update(what))
    print(f"made {environment.path}")


def download(
    name: Annotated[
        str, typer.Argument(help="A converter, or an environment that several share: scikit-learn.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder to put wheels into.")
    ] = Path("wheels"),
) -> None:
    """Fetch the wheels that a converter's environment is made of; EDGESERVE_WHEELHOUSE names them later.

    They fit this Python version and this platform.
    """
    from edgeserve.cli.output import stderr_console
    from edgeserve.tables import size_text

    environment = _environment(name)
    with stderr_console().status(f"downloading the wheels of {environment.name}") as status:
        environment.download(output, lambda what, share: status.update(what))
    wheels = [file for file in output.iterdir() if file.is_file()]
    size = size_text(sum(file.stat().st_size for file in wheels))
    print(f"{output} holds {len(wheels)} files ({size})")
    print(f"there: EDGESERVE_WHEELHOUSE={output} edgeserve env create {name}")


def remove(
    name: Annotated[str, typer.Argument(help="A converter, or an environment that several share.")],
) -> None:
    """Remove a converter's environments; `convert` makes one again when it needs it."""
    from edgeserve.conversion.tools.environment import remove_environments
    from edgeserve.conversion.tools.registry import converters, tool_environment
    from edgeserve.tables import size_text

    # Those of converters that are not installed any more can be removed, too.
    shared = {c.name: tool_environment(c).name for c in converters()}
    for record in remove_environments(shared.get(name, name)):
        print(f"removed {record.path} ({size_text(record.size_bytes)})")


def _environment(name: str) -> ToolEnvironment:
    """The environment of a converter, or the one called so that several share. Raises UsageError."""
    from edgeserve.conversion.tools.registry import converter_called, converters, tool_environment

    known = {tool_environment(c).name: tool_environment(c) for c in converters()}
    return known.get(name) or tool_environment(converter_called(name))


def _render(found: tuple[Converter, ...], records: list[EnvironmentRecord]) -> None:
    from edgeserve.cli.output import stdout_console
    from edgeserve.conversion.tools.registry import runs_here, tool_environment
    from edgeserve.tables import print_line, print_table, size_text

    console = stdout_console()
    rows = []
    by_path = {r.path: r for r in records}
    used = set()
    for converter in found:
        path = str(tool_environment(converter).path)
        record = by_path.get(path)
        used.add(path)
        if runs_here(converter):
            where = "this environment"
        elif record is None:
            where = "an environment not made yet"
        else:
            where = record.path if record.complete else f"{record.path} (unfinished)"
        size = size_text(record.size_bytes) if record else ""
        rows.append((converter.name, " ".join(converter.requires), where, size))
    # Left by an older edgeserve or another Python: nothing uses them any more.
    rows += [
        (f"{r.name} (unused)", " ".join(r.requires), r.path, size_text(r.size_bytes))
        for r in records
        if r.path not in used
    ]
    print_table(console, ("converter", "needs", "runs in", "size"), rows, right=("size",))
    missing = [c.name for c in found if not runs_here(c) and not tool_environment(c).complete]
    if missing:
        print_line(console, f"\ncreate one: edgeserve env create {missing[0]}")
    elif records:
        name = Path(records[0].path).name.rpartition("-")[0]
        print_line(console, f"\nremove one: edgeserve env remove {name}")
