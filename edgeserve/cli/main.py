"""The `edgeserve` command: from exec to exit code.

This file imports nothing but what is built in, so that signals and streams are looked after before the
rest of the program is imported, which takes longer than many a command.
"""

from __future__ import annotations

import os
import sys

# A server looks after its own signals and streams: it outlives both.
_SERVERS = ("run", "serve")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits as docs/cli.md says.

    With `arguments`, the process's signals and streams are left as they are: it may not be ours.
    """
    if arguments is not None:
        sys.exit(_run(arguments))
    arguments = sys.argv[1:]
    from edgeserve.cli import endings

    if next((word for word in arguments if not word.startswith("-")), None) in _SERVERS:
        from edgeserve import startup

        startup.keep_hangups()  # first: until then a SIGHUP ends this process
        from edgeserve.cli.streams import fill_gaps, replace_missing

        fill_gaps()
        replace_missing()
        sys.exit(_run(arguments))
    try:
        endings.install()
        code = _guarded(arguments)
        endings.uninstall()
    except BaseException:
        if endings.caught() is None:
            raise
        code = 130
    if (number := endings.caught()) is not None:
        endings.end(number)
    sys.exit(code)


def _guarded(arguments: list[str]) -> int:
    """One command's exit code; what could not be written to stdout changes it."""
    from edgeserve.cli import endings, streams

    output = streams.guard()
    endings.watch()
    try:
        code = _run(arguments)
    except SystemExit as ended:  # typer's completion; rich, where a pipe is closed
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return output.exit_code(code)


def _run(arguments: list[str]) -> int:
    """One command's exit code, its error printed."""
    debug = "--debug" in arguments or os.environ.get("EDGESERVE_DEBUG") not in (None, "", "0")
    try:
        return _called(arguments)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:  # noqa: BLE001 - the last resort before the user
        return _failed(error, debug=debug)


def _called(arguments: list[str]) -> int:
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot print "…" must not cause a failure.
            stream.reconfigure(errors="replace")
    from edgeserve.cli.commands import run_command

    return run_command(arguments)


def _failed(error: Exception, *, debug: bool) -> int:
    import typer

    from edgeserve.cli import endings
    from edgeserve.cli.commands import WRONG_USAGE, as_ours
    from edgeserve.cli.output import print_error
    from edgeserve.cli.streams import NotWritten
    from edgeserve.errors import EdgeServeError

    if endings.caught() is not None or isinstance(error, NotWritten):
        return 3  # `main` tells of either, whatever has become of it on the way here
    if isinstance(error, typer.Abort):
        return _interrupted()
    if isinstance(error, WRONG_USAGE):
        shown = getattr(error, "show", None)
        if type(error).__name__ == "NoArgsIsHelpError" and shown is not None:
            shown()
        else:
            print_error(as_ours(error))
        return 2
    if debug:
        import traceback

        traceback.print_exc()
    if isinstance(error, EdgeServeError):
        print_error(error)
        return error.exit_code
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    print("cause: this is a bug in edgeserve, not a mistake in your input", file=sys.stderr)
    print("hint: run it again with --debug and report what it prints", file=sys.stderr)
    return 3


def _interrupted() -> int:
    from edgeserve.cli import endings

    if endings.caught() is None:
        print("interrupted", file=sys.stderr)
    return 130
