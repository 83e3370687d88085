"""What can go wrong between a client and a server, in the same words for every transport."""

from __future__ import annotations

from edgeserve.errors import (
    EdgeServeError,
    EnvironmentProblem,
    InferenceFailed,
    InvalidInput,
    ModelNotFound,
    UsageError,
)


def unreachable(url: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"nothing listens at {url}", hint="start it: edgeserve run BUNDLE")


def silent(url: str, timeout_s: float) -> EnvironmentProblem:
    return EnvironmentProblem(f"{url} did not answer in {timeout_s:g} s", hint="--timeout SECONDS")


def broken(url: str, cause: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"the connection to {url} failed", cause=cause)


def wants_key(url: str, cause: str) -> UsageError:
    return UsageError(
        f"{url} requires a key",
        cause=cause,
        hint="set EDGESERVE_API_KEY, or name another variable with --key-env",
    )


def unknown(url: str, cause: str) -> ModelNotFound:
    # Triton begins with these words; the rest is the cause.
    return ModelNotFound(f"{url} cannot find it", cause=cause.removeprefix("Request for "))


def refused(url: str, cause: str) -> InvalidInput:
    return InvalidInput(f"{url} refused the request", cause=cause)


def busy(url: str, cause: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"{url} is too busy", cause=cause, hint="try again in a second")


def late(url: str, cause: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"{url} did not finish in time", cause=cause)


def failed(url: str, code: str, cause: str) -> EdgeServeError:
    return InferenceFailed(f"{url} failed ({code})", cause=cause)


def unreadable(cause: str) -> InferenceFailed:
    return InferenceFailed("the server's answer does not follow the protocol", cause=cause)
