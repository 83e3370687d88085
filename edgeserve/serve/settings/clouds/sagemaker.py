"""Amazon SageMaker: the port, the model's folder and the variables that its containers read.

Source: "Environment variables" of the SageMaker inference toolkit (sagemaker_inference/environment.py), and Triton's
docker/sagemaker/serve for the ports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from edgeserve.errors import UsageError
from edgeserve.serve.settings.clouds.environment import ANY_ADDRESS, port_of

_PORT: Final = "SAGEMAKER_BIND_TO_PORT"
_RANGE: Final = "SAGEMAKER_SAFE_PORT_RANGE"
_MULTI: Final = "SAGEMAKER_MULTI_MODEL"
_ACCEPT: Final = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"
_MODEL: Final = "/opt/ml/model"
_MODELS: Final = "/opt/ml/models"
_RANGE_RULE: Final = re.compile(r"(\d{1,5})-(\d{1,5})")
_ACCEPTS: Final = ("application/json", "text/csv", "application/x-npy", "application/x-npz", "application/jsonlines")  # fmt: skip


def preset(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of settings. Raises UsageError."""
    default_accept(environ)
    found: dict[str, Any] = {
        "host": ANY_ADDRESS,
        "insecure": True,  # only the platform reaches the container
        "http_port": _port(environ),
        "protocols": ("sagemaker",),
        "bundle": _MODEL,
    }
    if environ.get(_MULTI, "").strip().lower() == "true":
        # Nothing is loaded until the platform asks for it.
        del found["bundle"]
        found |= {"repository": _MODELS, "load": (), "model_control": True}
    payload = _number(environ, "SAGEMAKER_MAX_PAYLOAD_IN_MB")
    if payload is not None:
        found["max_body"] = payload << 20
    timeout = _number(environ, "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS") or _number(
        environ, "SAGEMAKER_MODEL_SERVER_TIMEOUT"
    )
    if timeout is not None:
        found["timeout"] = float(timeout)
    workers = _number(environ, "SAGEMAKER_MODEL_SERVER_WORKERS")
    if workers is not None:
        found["instances"] = workers
    return found


def default_accept(environ: Mapping[str, str]) -> str:
    """The media type of answers to requests that accept anything. Raises UsageError."""
    value = environ.get(_ACCEPT, "").strip().lower() or _ACCEPTS[0]
    if value not in _ACCEPTS:
        raise UsageError(
            f"{_ACCEPT} '{value:.60}' is not a media type that is written",
            hint=f"expected {', '.join(_ACCEPTS)}",
        )
    return value


def _port(environ: Mapping[str, str]) -> int:
    """Raises UsageError for a port outside of the range that the platform keeps free for the container."""
    port = port_of(environ, _PORT, 8080)
    given = environ.get(_RANGE, "").strip()
    if not given:
        return port
    match = _RANGE_RULE.fullmatch(given)
    if match is None:
        raise UsageError(
            f"{_RANGE} '{given:.40}' is not a range of ports", hint="expected 21000-21999"
        )
    if not int(match[1]) <= port <= int(match[2]):
        raise UsageError(f"port {port} is not in {_RANGE} {given}", hint=f"set {_PORT}")
    return port


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """A whole number of 1 or more; None if the variable is not set. Raises UsageError."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0 and len(text) <= 9):
        raise UsageError(f"{name} '{text:.40}' is not valid", hint="expected a number of 1 or more")
    return int(text)
