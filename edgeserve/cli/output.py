"""How commands speak: data on stdout, everything else on stderr, errors as what / cause / hint."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeserve.errors import EdgeServeError

if TYPE_CHECKING:
    from rich.console import Console


def print_error(error: EdgeServeError) -> None:
    """`error: what` / `cause: why` / `hint: what to do`, on stderr."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.cause:
        print(f"cause: {error.cause}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def is_quiet() -> bool:
    return os.environ.get("EDGESERVE_QUIET") == "1"


# How often progress is logged if stderr is not a terminal.
LINE_EVERY_S: Final = 30.0
# In files and pipes, where nobody knows how wide a line may be.
_WIDTH: Final = 140


def stdout_console() -> Console:
    """For results."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


def stderr_console() -> Console:
    """For progress and remarks; silent with --quiet."""
    from rich.console import Console

    width = None if sys.stderr.isatty() else _WIDTH
    return Console(stderr=True, quiet=is_quiet(), width=width, highlight=False)


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on stderr while the block runs; yields the function that moves it. Where stderr is not a
    terminal, a line every 30 s."""
    if is_quiet():
        yield _say_nothing
    elif sys.stderr.isatty():
        with _bar() as say:
            yield say
    else:
        with _lines() as say:
            yield say


def _say_nothing(what: str, share: float | None) -> None:
    """With --quiet."""


@contextmanager
def _bar() -> Iterator[Callable[[str, float | None], None]]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    # Redrawing costs CPU time that would be measured: twice a second is enough.
    with Progress(*columns, console=stderr_console(), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("starting", total=None)

        def say(what: str, share: float | None) -> None:
            total = None if share is None else 1.0
            bar.update(task, description=what, total=total, completed=share or 0.0)

        yield say


@contextmanager
def _lines() -> Iterator[Callable[[str, float | None], None]]:
    """A thread prints them: a call into an engine may take minutes."""
    latest = "starting"
    began = time.monotonic()
    over = threading.Event()

    def tell() -> None:
        while not over.wait(LINE_EVERY_S):
            minutes, seconds = divmod(round(time.monotonic() - began), 60)
            print(f"[{minutes}:{seconds:02}] {latest}", file=sys.stderr, flush=True)

    def say(what: str, share: float | None) -> None:
        nonlocal latest
        latest = what if share is None else f"{what}, {share:.0%}"

    teller = threading.Thread(target=tell, name="edgeserve-progress", daemon=True)
    teller.start()
    try:
        yield say
    finally:
        over.set()
        teller.join()


def write_output(text: str, path: str | None) -> None:
    """Write to `path`, or to stdout for None and `-`."""
    if path in (None, "-"):
        print(text)
        return
    from edgeserve.bundle.files import write_errors

    destination = Path(str(path))
    with write_errors(destination):
        destination.write_text(text + "\n", "utf-8")
