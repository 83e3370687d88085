"""SageMaker's headers of requests: which model and version, an id, attributes that the answer repeats.

Sources: InvokeEndpoint in Amazon SageMaker's API reference; sagemaker's TensorFlowPredictor for `tfs-` attributes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from edgeserve.errors import InvalidInput
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.response import Response

_ATTRIBUTES: Final = b"x-amzn-sagemaker-custom-attributes"
_IDENTITY: Final = b"x-amzn-sagemaker-inference-id"
_MODEL: Final = b"x-amzn-sagemaker-target-model"
_VARIANT: Final = b"x-amzn-sagemaker-target-variant"
_ENDPOINTS: Final = b"/endpoints/"
# The API's own limits.
_ATTRIBUTES_MOST: Final = 1_024
_IDENTITY_RULE: Final = re.compile(rb"[\x20-\x7e]{1,64}")
_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]+")
_ARCHIVE: Final = (".tar.gz", ".tgz")
# The name of the only variant of an endpoint, unless somebody chose another.
_ALL_TRAFFIC: Final = "AllTraffic"


def identity_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The client's id of a request; None without one. Raises InvalidInput."""
    value = headers.get(_IDENTITY)
    if value is None:
        return None
    if not _IDENTITY_RULE.fullmatch(value):
        raise InvalidInput("X-Amzn-SageMaker-Inference-Id: expected 1 to 64 printable characters")
    return value.decode("ascii")


def target_model(headers: Mapping[bytes, bytes]) -> str | None:
    """The model that Target-Model or the attribute `tfs-model-name` names. It is a name alone: `m` and `m.tar.gz` are
    model m."""
    name = headers.get(_MODEL, b"").decode("utf-8", "replace").removeprefix("/")
    for suffix in _ARCHIVE:
        name = name.removesuffix(suffix)
    return name or tfs_attributes(headers).get("tfs-model-name") or None


def target_version(headers: Mapping[bytes, bytes]) -> str | None:
    """The version that Target-Variant or the attribute `tfs-model-version` names; None: the newest. Raises
    InvalidInput."""
    variant = headers.get(_VARIANT, b"").decode("utf-8", "replace")
    if variant in ("", _ALL_TRAFFIC):
        return tfs_attributes(headers).get("tfs-model-version") or None
    if not (variant.isascii() and variant.isdigit()):
        raise InvalidInput(
            f"X-Amzn-SageMaker-Target-Variant: expected a version's number or {_ALL_TRAFFIC}, "
            f"got {variant!r:.64}"
        )
    return variant


def tfs_attributes(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """The attributes that a TensorFlowPredictor sets, `tfs-NAME=VALUE` between commas. Raises InvalidInput for a method
    other than `predict`."""
    text = headers.get(_ATTRIBUTES, b"")
    if b"tfs-" not in text:
        return {}
    found = {}
    for entry in text.decode("utf-8", "replace").split(","):
        name, _, value = entry.strip().partition("=")
        if name.startswith("tfs-"):
            found[name] = value
    method = found.get("tfs-method", "predict")
    if method != "predict":
        raise InvalidInput(
            f"tfs-method={method:.40} is not answered at this route: expected predict, or POST "
            f"/v1/models/M:{method:.40} of the protocol tfserving"
        )
    return found


def stamp(head: Head, response: Response) -> bytes:
    """Repeats the custom attributes, by which clients find out what an answer belongs to; and names the error, as the
    cloud's own endpoints do, for AWS's clients that were pointed here."""
    lines = b""
    value = head.headers.get(_ATTRIBUTES)
    if value is not None and len(value) <= _ATTRIBUTES_MOST and _PRINTABLE.fullmatch(value):
        lines = b"\r\nX-Amzn-SageMaker-Custom-Attributes: " + value
    if response.failed and head.path.startswith(_ENDPOINTS):
        lines += b"\r\nx-amzn-ErrorType: ModelError"
    return lines
