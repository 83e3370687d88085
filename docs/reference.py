"""Prints docs/cli-reference.md: every command's own help. `make reference` writes it; a test compares."""

from __future__ import annotations

from typing import Any

import typer
from typer.testing import CliRunner

from edgeserve.cli.commands import command_line

_WIDTH = 100
_HEAD = """\
# Every command and flag

What `edgeserve COMMAND --help` prints, made by `make reference`. What the commands are for: [cli.md](cli.md).
"""


def main() -> None:
    print(_HEAD)
    group: Any = typer.main.get_command(command_line())
    _print_help()
    for name, command in group.commands.items():
        _print_help(name)
        for inner in getattr(command, "commands", {}):
            if inner.islower():
                _print_help(name, inner)


def _print_help(*words: str) -> None:
    text = CliRunner().invoke(command_line(), [*words, "--help"], terminal_width=_WIDTH).output
    lines = (f"    {line}".rstrip() for line in text.strip().splitlines())
    print(f"## edgeserve {' '.join(words)}".strip(), "", *lines, "", sep="\n")


if __name__ == "__main__":
    main()
