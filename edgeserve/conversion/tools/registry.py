"""Finding converters, the shortest path between two formats, and running one, here or in a tool
environment."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections import deque
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from edgeserve import telemetry
from edgeserve.conversion.tools import reuse
from edgeserve.conversion.tools import runner as tool_runner
from edgeserve.conversion.tools.environment import ToolEnvironment
from edgeserve.conversion.tools.protocol import Converter, ConverterOptions
from edgeserve.errors import (
    DependencyMissing,
    EdgeServeError,
    ToolEnvironmentError,
    UnsupportedModel,
    UsageError,
    did_you_mean,
)
from edgeserve.progress import Say

log = logging.getLogger(__name__)

GROUP = "edgeserve.converters"


class UnsupportedOperators(UnsupportedModel):
    """A converter does not know these operator types."""

    def __init__(self, converter: Converter, ops: list[str], cause: str) -> None:
        super().__init__(
            f"{converter.name} cannot convert {'operator' if len(ops) == 1 else 'operators'} "
            f"{', '.join(ops)}, so nothing that reads {converter.output_format} can run the model",
            cause=cause,
            hint="another runtime may run it; or export the model without it",
        )
        self.ops = ops


@cache
def converters() -> tuple[Converter, ...]:
    """All installed converters, by name. One that cannot be imported is logged and left out."""
    entries = sorted(entry_points(group=GROUP), key=lambda e: e.name)
    return tuple(c for c in map(_load, entries) if c is not None)


def converter_called(name: str) -> Converter:
    """The converter of this name. Raises UsageError."""
    for converter in converters():
        if converter.name == name:
            return converter
    names = [c.name for c in converters()]
    raise UsageError(
        f"there is no converter '{name}'",
        hint=did_you_mean(name, names, f"installed: {', '.join(names)}"),
    )


def shortest_path(source_format: str, output_format: str) -> list[Converter]:
    """The fewest converters that lead from one format to the other. Raises UnsupportedModel."""
    paths: deque[tuple[str, list[Converter]]] = deque([(source_format, [])])
    seen = {source_format}
    while paths:
        at, path = paths.popleft()
        for converter in converters():
            if converter.source_format != at or converter.output_format in seen:
                continue
            longer = [*path, converter]
            if converter.output_format == output_format:
                return longer
            seen.add(converter.output_format)
            paths.append((converter.output_format, longer))
    raise _no_way(source_format, output_format)


def _no_way(source_format: str, output_format: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"no installed converter leads from {source_format} to {output_format}",
        hint=f"installed: {', '.join(c.name for c in converters())}",
    )


def runs_here(converter: Converter) -> bool:
    """Whether this interpreter has what the converter imports."""
    return all(_importable(name) for name in converter.imports)


def tool_environment(converter: Converter) -> ToolEnvironment:
    """The environment a converter runs in where `runs_here` is False; several may share one."""
    name = getattr(converter, "environment", converter.name)
    return ToolEnvironment(name, converter.requires, converter.pip_arguments)


def pip_command(converter: Converter) -> str:
    """What installs a converter's packages into this environment."""
    return shlex.join(["pip", "install", *converter.pip_arguments, *converter.requires])


def run_converter(
    converter: Converter,
    source: Path,
    out_dir: Path,
    options: ConverterOptions,
    *,
    tool_env: bool,
    say: Say,
) -> list[Path]:
    """Run a converter in this interpreter when it can, else in its tool environment.

    Raises UnsupportedOperators, UnsupportedModel (the converter fails on this model),
    DependencyMissing (tool environments turned off), ToolEnvironmentError, OSError (disk full).
    """
    place = reuse.place_of(converter.name, source, options)
    if place is not None and (kept := reuse.take(place, out_dir)) is not None:
        return kept
    if runs_here(converter):
        files = _run_here(converter, source, out_dir, options)
    elif tool_env:
        with tool_environment(converter).in_use(say) as python:
            say(f"running {converter.name} in its tool environment", None)
            files = _run_in(python, converter, source, out_dir, options)
    else:
        missing = DependencyMissing(
            " ".join(converter.requires), needed_for=f"the converter {converter.name}"
        )
        missing.hint = (
            f"{pip_command(converter)}, or leave out --no-tool-env: the tool environment "
            f"{tool_environment(converter).name} will hold it"
        )
        raise missing
    if not files or not all(file.is_file() for file in files):
        raise UnsupportedModel(
            f"{converter.name} failed on {source.name}",
            cause=f"it wrote none of {', '.join(f.name for f in files) or 'its files'}",
        )
    if place is not None:
        reuse.keep(place, out_dir, files)
    return files


def _run_here(
    converter: Converter, source: Path, out_dir: Path, options: ConverterOptions
) -> list[Path]:
    telemetry.refuse()
    try:
        return converter.convert(source, out_dir, options)
    except (EdgeServeError, OSError, MemoryError):
        raise
    except Exception as error:
        unsupported = list(getattr(error, "unsupported_ops", []))
        raise _failed(converter, source, type(error).__name__, str(error), unsupported) from error


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _run_in(
    python: Path, converter: Converter, source: Path, out_dir: Path, options: ConverterOptions
) -> list[Path]:
    entry = _entry(converter)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        job = scratch / "job.json"
        content = {
            "module": entry.module,
            "file": importlib.import_module(entry.module).__file__,
            "attribute": entry.attr,
            "source": str(source.resolve()),
            "out_dir": str(out_dir.resolve()),
            "options": dict(options),
        }
        job.write_text(json.dumps(content), "utf-8")
        code, printed = _supervise(
            [str(python), "-I", "-u", tool_runner.__file__, str(job)], scratch
        )
        result_file = job.with_suffix(".result")
        if code != 0 or not result_file.exists():
            raise ToolEnvironmentError(
                f"{converter.name} crashed in its tool environment ({_ending(code)})",
                cause=_tail(printed),
                hint="free some memory, then try again"
                if code == -signal.SIGKILL
                else f"remove the environment, which is made again when needed: edgeserve env remove {tool_environment(converter).name}",
            )
        result: dict[str, Any] = json.loads(result_file.read_text("utf-8"))
    if "files" in result:
        return [Path(f) for f in result["files"]]
    if result["missing_module"]:
        raise ToolEnvironmentError(
            f"the tool environment {converter.name} lacks a module",
            cause=result["error"],
            hint=f"remove it, it is made again when needed: edgeserve env remove {tool_environment(converter).name}",
        )
    if result["os_error"] is not None:
        raise OSError(*result["os_error"])
    raise _failed(
        converter, source, result["kind"], result["error"], result["unsupported_ops"], printed
    )


def _supervise(command: list[str], scratch: Path) -> tuple[int, str]:
    """Run to the end: exit code and what was printed. The child dies with this call, or this process.

    It has a session of its own, so that its whole family can be killed, and a stdin that ends when
    this process does. Converters leave files where they run, and, when they are killed, in the folder of
    temporary files: both are the scratch folder.
    """
    printed = scratch / "printed.txt"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=os.environ | {"TMPDIR": str(scratch)},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
    return code, printed.read_text("utf-8", errors="replace")


def _failed(
    converter: Converter,
    source: Path,
    kind: str,
    text: str,
    unsupported: list[str],
    printed: str = "",
) -> UnsupportedModel:
    if unsupported:
        return UnsupportedOperators(converter, unsupported, _shortened(text))
    said = f"{kind}: {text}" if text.strip() else f"{kind}; it printed: {_tail(printed)}"
    return UnsupportedModel(f"{converter.name} failed on {source.name}", cause=_shortened(said))


def _load(entry: EntryPoint) -> Converter | None:
    try:
        converter: Converter = entry.load()
    except (ImportError, AttributeError) as error:
        log.warning("the converter %s (%s) cannot be loaded: %s", entry.name, entry.value, error)
        return None
    return converter


def _entry(converter: Converter) -> EntryPoint:
    for entry in entry_points(group=GROUP):
        if _load(entry) is converter:
            return entry
    raise ToolEnvironmentError(f"{converter.name} is not installed as an entry point")


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _tail(text: str, lines: int = 5) -> str:
    """The last lines printed; progress bars rewrite theirs with carriage returns."""
    kept = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()][-lines:]
    return " | ".join(kept) or "it printed nothing"


def _shortened(text: str, limit: int = 600) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[:limit]}…"
