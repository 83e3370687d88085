"""The commands: which there are, and how one is called.

Command files import nothing heavy at module level: `edgeserve --help` answers within 150 ms. The files
of commands that are not called are not imported at all: a server does without their memory.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup, TyperOption

from edgeserve.errors import UsageError
from edgeserve.version import __version__

# The base of usage errors: click's ClickException, which typer 0.28 has a copy of inside itself and no
# longer depends on.
WRONG_USAGE: Any = typer.BadParameter.__mro__[2]

# In the order of `edgeserve --help`; each in a file of its name in edgeserve/cli.
COMMANDS: Final = (
    "check", "convert", "bench", "gate", "run", "serve", "infer", "status", "package", "archive", "inspect",
    "targets", "doctor", "env", "demo",
)  # fmt: skip

# What help texts call a value, in place of the names of typer's own types.
_METAVARS: Final = {
    "str": "TEXT",
    "int": "N",
    "int range": "N",
    "float": "NUMBER",
    "float range": "NUMBER",
    "path": "PATH",
}


class _Commands(TyperGroup):
    """The commands, their options' values named for people. Only the one that is used is touched."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        for inner in (command, *getattr(command, "commands", {}).values()):
            for option in getattr(inner, "params", ()):
                if isinstance(option, TyperOption) and option.metavar is None:
                    option.metavar = _METAVARS.get(option.type.name)
        return name, command, rest


def _version(value: bool) -> None:
    if value:
        print(f"edgeserve {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="EDGESERVE_DEBUG", help="Show tracebacks.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print only results and errors.")
    ] = False,
) -> None:
    context.obj = {"debug": debug}
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    if quiet:
        os.environ["EDGESERVE_QUIET"] = "1"


def command_line(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with the commands `names`."""
    app = typer.Typer(
        name="edgeserve",
        cls=_Commands,
        no_args_is_help=True,
        rich_markup_mode=None,  # rich-formatted help doubles the start-up time
        pretty_exceptions_enable=False,
        help="Convert a trained model for a device, prove it, measure it, gate it, serve it.",
        epilog="Start with: edgeserve demo",
    )
    app.callback()(_options)
    for name in names:
        import_module(f"edgeserve.cli.{name}").register(app)
    return app


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Raises what the command raises."""
    called = next((word for word in arguments if not word.startswith("-")), None)
    # No option that may stand before a command takes a value. An unknown command is reported together with the known ones.
    app = command_line([called] if called in COMMANDS else COMMANDS)
    result: Any = typer.main.get_command(app)(
        args=list(arguments), prog_name="edgeserve", standalone_mode=False
    )
    return result if isinstance(result, int) else 0


def as_ours(error: Any) -> UsageError:
    """Wrong flags reported like every other error."""
    what = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "edgeserve"
    return UsageError(what[:1].lower() + what[1:], hint=f"{command} --help")
