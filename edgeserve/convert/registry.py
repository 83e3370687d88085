"""Finding converters, the shortest path between two formats, and running one, here or in a tool
environment."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from edgeserve.convert import tool_runner
from edgeserve.convert.protocol import Converter
from edgeserve.convert.toolenv import ToolEnvironment
from edgeserve.errors import (
    DependencyMissing,
    EdgeServeError,
    ToolEnvironmentError,
    UnsupportedModel,
)

GROUP = "edgeserve.converters"
Say = Callable[[str, float | None], None]
ConverterOptions = Mapping[str, str | int | float]


@cache
def converters() -> tuple[Converter, ...]:
    """All installed converters."""
    return tuple(entry.load() for entry in sorted(entry_points(group=GROUP)))


def converter_between(source_format: str, output_format: str) -> Converter:
    """The converter that does exactly this step. Raises UnsupportedModel."""
    for converter in converters():
        if (converter.source_format, converter.output_format) == (source_format, output_format):
            return converter
    raise UnsupportedModel(
        f"no converter from {source_format} to {output_format} is installed",
        hint=f"installed: {', '.join(c.name for c in converters())}",
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
    raise UnsupportedModel(
        f"no installed converters lead from {source_format} to {output_format}",
        hint=f"installed: {', '.join(c.name for c in converters())}",
    )


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

    Raises UnsupportedModel (naming operators), DependencyMissing (tool environments turned off),
    ToolEnvironmentError.
    """
    if all(_importable(name) for name in converter.imports):
        try:
            return converter.convert(source, out_dir, options)
        except (EdgeServeError, OSError, MemoryError):
            raise
        except Exception as error:  # converters raise whatever their tools raise
            unsupported = list(getattr(error, "unsupported_ops", []))
            raise _failed(converter, f"{type(error).__name__}: {error}", unsupported) from error
    if not tool_env:
        raise DependencyMissing(
            " ".join(_quoted(r) for r in converter.requires),
            needed_for=f"the converter {converter.name}",
        )
    environment = ToolEnvironment(converter.name, converter.requires, converter.pip_arguments)
    python = environment.ensure(say)
    say(f"running {converter.name} in its tool environment", None)
    return _run_in(python, converter, source, out_dir, options)


def _quoted(requirement: str) -> str:
    return f"'{requirement}'" if set(requirement) & set("<>;[ ") else requirement


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _run_in(
    python: Path, converter: Converter, source: Path, out_dir: Path, options: ConverterOptions
) -> list[Path]:
    module, attribute = _location(converter)
    with tempfile.TemporaryDirectory(dir=out_dir.parent) as scratch:
        job = Path(scratch) / "job.json"
        job.write_text(
            json.dumps(
                {
                    "module": str(module),
                    "attribute": attribute,
                    "source": str(source.resolve()),
                    "out_dir": str(out_dir.resolve()),
                    "options": dict(options),
                }
            ),
            "utf-8",
        )
        # -I keeps this interpreter's PYTHONPATH and user packages out of the environment. Converters
        # leave files where they run: that is the scratch folder.
        run = subprocess.run(
            [str(python), "-I", tool_runner.__file__, str(job)],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        result_file = job.with_suffix(".result")
        if run.returncode != 0 or not result_file.exists():
            raise ToolEnvironmentError(
                f"{converter.name} died in its tool environment (exit code {run.returncode})",
                cause=_tail(run.stderr),
                hint=f"edgeserve env remove {converter.name}, then try again",
            )
        result: dict[str, Any] = json.loads(result_file.read_text("utf-8"))
    if "error" in result:
        raise _failed(converter, str(result["error"]), result["unsupported_ops"])
    return [Path(f) for f in result["files"]]


class UnsupportedOperators(UnsupportedModel):
    """A converter does not know these operator types."""

    def __init__(self, converter: str, ops: list[str], cause: str) -> None:
        super().__init__(f"{converter} cannot convert operators {', '.join(ops)}", cause=cause)
        self.ops = ops


def _failed(converter: Converter, text: str, unsupported: list[str]) -> UnsupportedModel:
    if unsupported:
        return UnsupportedOperators(converter.name, unsupported, _shortened(text))
    return UnsupportedModel(f"{converter.name} failed", cause=_shortened(text))


def _location(converter: Converter) -> tuple[Path, str]:
    """The file and attribute that a converter's entry point names."""
    for entry in entry_points(group=GROUP):
        if entry.load() is converter:
            return _module_file(entry), entry.attr
    raise ToolEnvironmentError(f"{converter.name} is not installed as an entry point")


def _module_file(entry: EntryPoint) -> Path:
    return Path(str(importlib.import_module(entry.module).__file__))


def _tail(text: str, lines: int = 5) -> str:
    kept = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return " | ".join(kept) or f"it printed nothing ({sys.platform})"


def _shortened(text: str, limit: int = 400) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[:limit]}…"
