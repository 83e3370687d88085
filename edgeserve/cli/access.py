"""The flags with which commands reach a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeserve.errors import UsageError

if TYPE_CHECKING:
    from edgeserve.client import Access

KEY_VARIABLE = "EDGESERVE_API_KEY"

KeyEnv = Annotated[
    str | None,
    typer.Option("--key-env", metavar="NAME", help=f"Variable with the API key [{KEY_VARIABLE}]."),
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="PEM", help="Certificates of the authorities to trust."),
]
Certificate = Annotated[
    Path | None, typer.Option("--cert", metavar="PEM", help="This client's certificate and key.")
]
CertificateKey = Annotated[
    Path | None,
    typer.Option(
        "--cert-key", metavar="PEM", help="The certificate's key, if it is a separate file."
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.001, help="Time limit of a request in seconds.")
]


def access_from(
    key_env: str | None,
    ca: Path | None,
    certificate: Path | None,
    certificate_key: Path | None,
    timeout_s: float,
) -> Access:
    """Raises UsageError when the named variable is not set."""
    from edgeserve.client import Access

    key = os.environ.get(key_env or KEY_VARIABLE)
    if key_env is not None and not key:
        raise UsageError(f"the variable {key_env} holds no key")
    return Access(timeout_s, key or None, ca, certificate, certificate_key)
