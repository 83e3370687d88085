"""How far a run has come, in a small file beside its output. While it exists, the output is incomplete."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgeserve.batch.sinks import replace
from edgeserve.batch.sources import SourceIdentity
from edgeserve.errors import UsageError

_FORMAT: Final = 1


class RunProgress(msgspec.Struct, frozen=True):
    """`rows` of the source are done, `failed` of them in the errors file; everything after `position` of the
    output and `errors_position` of the errors file is not counted. `form` says how answers are written.
    `finished`: every row is done, and the output may have to be put together."""

    source: SourceIdentity
    model: str
    form: str
    rows: int = 0
    failed: int = 0
    position: int = 0
    errors_position: int = 0
    finished: bool = False
    version: int = _FORMAT


def progress_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.progress.json")


def save(path: Path, progress: RunProgress) -> None:
    """Raises WriteFailed."""
    replace(path, msgspec.json.encode(progress))


def load(path: Path) -> RunProgress:
    """Raises UsageError."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=RunProgress)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{path} is not readable", cause=str(error), hint="--force starts again"
        ) from None
    if found.version != _FORMAT:
        raise UsageError(
            f"{path} was written by another version of edgeserve", hint="--force starts again"
        )
    return found


def check_same(before: RunProgress, now: RunProgress, source: Path, output: Path) -> None:
    """Raises UsageError when a run cannot continue the one before."""
    again = f"--force starts again and replaces {output}"
    if before.source != now.source:
        raise UsageError(
            f"{source} has changed since {output} was begun",
            cause=f"it had {before.source.size} bytes or files, and has {now.source.size}"
            if before.source.size != now.source.size
            else "its content is different",
            hint=again,
        )
    if before.model != now.model:
        raise UsageError(
            f"{output} was begun with another model", cause=f"with {before.model}", hint=again
        )
    if before.form != now.form:
        raise UsageError(
            f"{output} was begun with other columns", cause=f"with {before.form}", hint=again
        )
