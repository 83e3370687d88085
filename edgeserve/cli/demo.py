"""`edgeserve demo`: the whole path on the embedded model, by the commands a user would type."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeserve.demo import Answers

_STOP_S = 15.0
# The digits are bright on dark, people write dark on bright: 1 - pixel / 255.
_PHOTOGRAPHS = (
    "--image-size", "8", "--channels", "L", "--scale=-0.00392156862745098", "--mean=-1",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    app.command(
        "demo",
        short_help="Convert, bench, gate and serve an embedded digit classifier.",
        help="Convert, prove, bench, gate, serve and query an embedded digit classifier.\n\n"
        "Example: edgeserve demo --keep digits-demo",
    )(command)


def command(
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the bundle in this folder.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve/--no-serve", help="Serve the bundle at the end, and query it.")
    ] = True,
) -> None:
    from edgeserve.demo import ask, embedded

    demo = embedded()
    steps = 5 if serve else 3
    with _folder(keep) as folder:
        bundle = folder / "digits.edge"
        _step(f"1/{steps}", "convert to int8, prove it against the source, choose")
        _run(
            "convert", str(demo.model), "-o", str(bundle), "--calibrate", str(demo.calibration),
            "--eval", str(demo.samples), "--labels", str(demo.labels), "--force",
            "--recipe", "static", *_PHOTOGRAPHS,
        )  # fmt: skip
        _step(f"2/{steps}", "measure every candidate on this machine")
        _run("bench", str(bundle), "--against", str(demo.model), "--duration", "2")
        _step(f"3/{steps}", "check it against budgets, as CI would")
        _run("gate", str(bundle), "--max-size", "300 kB", "--max-accuracy-drop", "1.0")
        if serve:
            _step(f"4/{steps}", "serve it")
            with _serving(bundle) as url:
                _step(f"5/{steps}", f"ask {url} about 200 digits it has never seen")
                _show(ask(url, "digits", demo.samples))
        if keep is not None:
            print(f"\nthe bundle is in {bundle}; serve it again: edgeserve run {bundle}")
            print("it reads photographs of a digit, dark on bright, that fills most of a square")
        else:
            print("\nnext: edgeserve demo --keep DIR keeps the bundle; edgeserve convert YOUR.onnx")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        from edgeserve.bundle.files import write_errors

        with write_errors(keep):
            keep.mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory(prefix="edgeserve-demo-") as folder:
            yield Path(folder)


def _step(number: str, what: str) -> None:
    from edgeserve.cli.output import stdout_console

    console = stdout_console()
    console.print()
    console.rule(f"[bold]{number}  {what}", align="left")
    sys.stdout.flush()


def _run(*arguments: str) -> None:
    """One command, shown as it would be typed. Raises CheckFailed when it does not succeed."""
    from edgeserve.cli.commands import run_command
    from edgeserve.errors import CheckFailed

    print(f"$ edgeserve {shlex.join(arguments)}\n", flush=True)
    code = run_command(arguments)
    if code:
        raise CheckFailed(
            f"edgeserve {arguments[0]} ended with exit code {code}",
            hint="see its output above",
        )


@contextmanager
def _serving(bundle: Path) -> Iterator[str]:
    """A server in a process of its own, as on a device; yields its URL and stops it with SIGTERM."""
    from edgeserve.errors import EnvironmentProblem

    arguments = ["run", str(bundle), "--http-port", "0"]
    print(f"$ edgeserve {shlex.join(arguments)}\n", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeserve", *arguments], stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield _url(process)
            process.send_signal(signal.SIGTERM)
            code = process.wait(_STOP_S)
            if code != 0:
                raise EnvironmentProblem(f"the server ended with exit code {code}")
            print("\nSIGTERM: the server drained and ended with exit code 0")
        finally:
            process.kill()


def _url(process: subprocess.Popen[str]) -> str:
    """Pass the server's start-up table on until it names its URL."""
    from edgeserve.errors import EnvironmentProblem

    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="")
        found = re.search(r"http://[\w.:\[\]-]+:\d+", line)
        if found:
            return found[0]
    raise EnvironmentProblem("the server did not start", hint="see its output above")


def _show(answers: Answers) -> None:
    shades = " .:-=+*#%@"
    for row in answers.example_image:
        print("    " + "".join(shades[min(9, round(v * 9))] * 2 for v in row))
    best = max(range(len(answers.example_scores)), key=answers.example_scores.__getitem__)
    print(f"\nlabelled {answers.example_label}, answered {best}")
    print(
        f"{answers.right} of {answers.samples} right, on device '{answers.device}', "
        f"{answers.requests_per_s:.0f} requests/s from one client that sends one request at a time"
    )
