"""`edgeserve serve`: the command that Amazon SageMaker starts a container with, short for `run --cloud sagemaker`."""

from __future__ import annotations

import typer

_CLOUD = "--cloud"


def register(app: typer.Typer) -> None:
    @app.command(
        "serve",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        short_help="Serve as an Amazon SageMaker container: run --cloud sagemaker.",
        help="Serve as an Amazon SageMaker container does: short for `edgeserve run --cloud sagemaker`, whose flags it "
        "takes. SageMaker starts every container with the command `serve`.\n\n"
        "Example: edgeserve serve, or docker run IMAGE serve",
        options_metavar="[OPTIONS OF RUN]",
    )
    def serve(context: typer.Context) -> int:
        from edgeserve.cli.commands import run_command

        given = any(arg == _CLOUD or arg.startswith(f"{_CLOUD}=") for arg in context.args)
        cloud = [] if given else [_CLOUD, "sagemaker"]
        return run_command(["run", *cloud, *context.args])
