"""`edgeserve package`: a bundle with all that serves it, for a device without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeserve.packaging import DevicePackage


def register(app: typer.Typer) -> None:
    app.command(
        "package",
        short_help="Write a folder that installs and serves on a device.",
        epilog="Example: edgeserve package model.edge --arch aarch64 -o model-pi",
    )(command)


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `edgeserve convert` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The folder to write [NAME-package]."),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="The device's CPU: x86_64 or aarch64 [this machine's].")
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="3.N", help="The device's Python [this one].")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="Take only this runtime's candidates. May be repeated."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Take only this variant. May be repeated.")
    ] = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep variants that no candidate uses.")
    ] = False,
    wheelhouse: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Take wheels from here instead of a package index."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on, for serve.toml.")
    ] = "localhost",
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The HTTP port, for serve.toml.")
    ] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Also serve gRPC on this port; its packages are included."
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow serve.toml to open the server to the network.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing package.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write everything the device needs, nothing more: bundle, wheels, installer, systemd unit.

    The folder installs and serves where no package index can be reached.
    """
    from edgeserve.cli.output import stderr_console
    from edgeserve.exporting import to_json
    from edgeserve.packaging import PackageOptions, package

    options = PackageOptions(
        arch=arch,
        python=python,
        runtimes=tuple(runtime or ()),
        variants=tuple(variant or ()),
        keep_all=keep_all,
        wheelhouse=wheelhouse,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        insecure=insecure,
        force=force,
    )
    destination = output or Path(f"{bundle.stem}-package")
    with stderr_console().status("reading the bundle") as status:
        written = package(bundle, destination, options, lambda what, share: status.update(what))
    if json:
        print(to_json(written))
    else:
        render(written)


def render(written: DevicePackage) -> None:
    """The parts and what they weigh; the last line is what to do next."""
    from edgeserve.cli.output import stdout_console
    from edgeserve.tables import print_line, print_table, size_text

    console = stdout_console()
    print_line(
        console,
        f"{written.path}: {written.name} for Linux on {written.arch}, Python {written.python}, "
        f"glibc {written.glibc} or newer",
    )
    print_line(console, f"chain: {' -> '.join(c.label for c in written.chain)}\n")
    rows = [
        (
            part.name,
            part.version or "",
            size_text(part.packed_bytes),
            size_text(part.installed_bytes) if part.installed_bytes else "",
        )
        for part in written.parts
    ]
    rows.append(("all", "", size_text(written.packed_bytes), size_text(written.installed_bytes)))
    sizes = ("packed", "installed")
    print_table(console, ("part", "version", *sizes), rows, right=sizes)
    print_line(console, f"\ncopy it to the device, then there: {written.path}/install.sh")
