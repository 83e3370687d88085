"""Errors on their way to another process: as data, and raised again there."""

from __future__ import annotations

import msgspec

from edgeserve.errors import EdgeServeError, EnvironmentProblem


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error as data. `kind` is the name of its class."""

    kind: str
    message: str
    cause: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: EdgeServeError, most: int | None = None) -> Failure:
        """`most` is the largest number of characters in a message or a cause; what is longer is cut."""
        cause = None if error.cause is None else _cut(error.cause, most)
        return cls(type(error).__name__, _cut(error.message, most), cause, error.hint)

    def error(self, unknown: type[EdgeServeError] = EnvironmentProblem) -> EdgeServeError:
        """The error again, as far as its text and its class go; of class `unknown` where this process does not have
        its class."""
        kind = _kinds().get(self.kind, unknown)
        try:
            return kind(self.message, cause=self.cause, hint=self.hint)
        except TypeError:  # a class that makes its texts itself
            error = kind.__new__(kind)
            EdgeServeError.__init__(error, self.message, cause=self.cause, hint=self.hint)
            return error


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else text[:most] + "…"


def _kinds() -> dict[str, type[EdgeServeError]]:
    found: dict[str, type[EdgeServeError]] = {}
    waiting: list[type[EdgeServeError]] = [EdgeServeError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found
