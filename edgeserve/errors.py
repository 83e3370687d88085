"""Every error edgeserve raises on purpose, in one hierarchy.

    EdgeServeError                 message, cause, hint, exit_code
    ├── UsageError                 2  wrong flags, configuration or input
    │   ├── SourceError            2  the source model cannot be read
    │   ├── UnsupportedModel       2  readable, but a runtime or target cannot run it
    │   ├── DataError              2  calibration or evaluation data do not fit
    │   ├── TargetError            2  unknown or invalid target
    │   ├── BundleError            2  not a bundle, damaged, tampered with, or too new
    │   ├── OutputExists           2  would overwrite without --force
    │   ├── ModelNotFound          2  no such model or version
    │   └── InvalidInput           2  tensors that do not fit the interface
    ├── CheckFailed                1  a gate or a check was not met
    └── EnvironmentProblem         3  cannot be done or measured on this machine
        ├── DependencyMissing      3  names the pip command
        ├── ToolEnvironmentError   3  a tool environment cannot be made or used
        ├── DeviceUnavailable      3  holds the engine's own message
        ├── InferenceFailed        3  a runtime raised while running
        │   ├── BeyondEngine       3  values that this engine computes in a narrower type
        │   ├── DeviceLost         3  the device's process died, hung or was ended
        │   ├── WrongNumbers       3  not finite, or not the golden samples' any more
        │   └── InputFailed        2  the model fails on one request's inputs, on a device that is right
        ├── ModelUnavailable       3  a known model that does not serve now; the cause says why
        ├── NotMeasured            3  a measurement could not be taken
        └── WriteFailed            3  disk full, no permission

Edges (the CLI, the HTTP server) turn these into text and codes; nothing in between does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal, TypeVar

T = TypeVar("T", str, None)


class EdgeServeError(Exception):
    """Base of all errors meant for the user.

    `message` says what went wrong, `cause` why, `hint` what to do next.
    """

    exit_code = 3

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.cause}" if self.cause else self.message


def one_line(error: Exception) -> str:
    """An exception's text on one line; how Python shows it where it has none."""
    return " ".join(str(error).split()) or repr(error)


class UsageError(EdgeServeError):
    """The command line, configuration or input is wrong."""

    exit_code = 2


class SourceError(UsageError):
    """The source model cannot be read."""


class UnsupportedModel(UsageError):
    """The model is readable, but a runtime or target cannot run it."""


class DataError(UsageError):
    """Calibration or evaluation data are missing, empty or do not fit the model."""


class TargetError(UsageError):
    """The target is unknown or its TOML is invalid."""


class BundleError(UsageError):
    """Not a bundle, damaged, tampered with, or written by a newer edgeserve."""


class OutputExists(UsageError):
    """The output is there already and --force was not given."""


class ModelNotFound(UsageError):
    """No model, or no version of it, under this name."""


class InvalidInput(UsageError):
    """Tensors of a request do not fit the model's interface."""


class CheckFailed(EdgeServeError):
    """A gate or a check was not met."""

    exit_code = 1


class EnvironmentProblem(EdgeServeError):
    """This cannot be done or measured on this machine as it is."""

    exit_code = 3


class DependencyMissing(EnvironmentProblem):
    """A package is not installed; the hint is the pip command that installs it."""

    def __init__(self, package: str, *, needed_for: str, extra: str | None = None) -> None:
        what = f"'edgeserve[{extra}]'" if extra else package
        super().__init__(
            f"{needed_for} needs {package}, which is not installed",
            hint=f"pip install {what}",
        )
        self.package = package


class ToolEnvironmentError(EnvironmentProblem):
    """A tool environment cannot be created or used."""


class DeviceUnavailable(EnvironmentProblem):
    """A runtime cannot open a device; `cause` is the engine's own message."""


class InferenceFailed(EnvironmentProblem):
    """A runtime raised while running; `cause` is the engine's own message."""


class BeyondEngine(InferenceFailed):
    """A request holds values that this engine would silently compute in a narrower type. That says nothing
    about the device, and another engine may take them."""


class DeviceLost(InferenceFailed):
    """The process that held the device is gone; `reason` says how: it died, hung, or grew too large."""

    reason: Literal["crash", "hang", "memory"]

    def __init__(
        self,
        message: str,
        *,
        cause: str | None = None,
        hint: str | None = None,
        reason: Literal["crash", "hang", "memory"] = "crash",
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.reason = reason


class WrongNumbers(InferenceFailed):
    """A device answered with numbers that cannot be right."""


class InputFailed(InferenceFailed):
    """The model fails on these inputs; its device is right about the golden samples, and serves on."""

    exit_code = 2


class ModelUnavailable(EnvironmentProblem):
    """The server knows the model, but it does not serve now; `cause` says why."""


class NotMeasured(EnvironmentProblem):
    """A measurement could not be taken."""


class WriteFailed(EnvironmentProblem):
    """The output could not be written (disk full, no permission)."""


def quoted(text: str, most: int = 60) -> str:
    """What somebody else wrote, for a message: in quotes, control characters escaped, cut to `most`."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}…"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that looks most like `word`, or None."""
    hits = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return hits[0] if hits else None


def did_you_mean(word: str, known: Iterable[str], otherwise: T) -> str | T:
    """The hint that asks for the nearest known word; `otherwise` where none is near."""
    guess = nearest(word, known)
    return f"did you mean '{guess}'?" if guess else otherwise
