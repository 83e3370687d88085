"""`edgeserve archive`: a bundle as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(
        "archive",
        short_help="Write a bundle as one file.",
        help="Write a bundle as one file. Every command accepts it in place of the folder.\n\n"
        "Example: edgeserve archive model.edge -o release/model.edge",
    )(command)


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    from edgeserve.bundle import Bundle
    from edgeserve.bundle.packing import pack
    from edgeserve.errors import UsageError
    from edgeserve.tables import size_text

    opened = Bundle.open(bundle)
    if opened.path.is_file():
        raise UsageError(f"{bundle} is already one file")
    pack(opened, output, force=force)
    print(f"wrote {output} ({size_text(output.stat().st_size)})")
