"""What batch transform asks a container before it sends records.

Source: "Use Your Own Inference Code with Batch Transform" in Amazon SageMaker's developer guide.
"""

from __future__ import annotations

import os
from typing import Final, Literal

import msgspec

from edgeserve.serve.http.response import Response
from edgeserve.serve.http.route import Asked
from edgeserve.serve.protocols.context import Served

_MIB: Final = 1 << 20
_PAYLOAD_MB: Final = 6
# SageMaker's own limit for the product of the two numbers, in MB.
_TOGETHER_MB: Final = 100


class ExecutionParameters(msgspec.Struct, frozen=True, rename="pascal"):
    """How many requests at one time, how large they are, and whether several records may share one."""

    max_concurrent_transforms: int
    max_payload_in_mb: int = msgspec.field(name="MaxPayloadInMB")
    batch_strategy: Literal["SINGLE_RECORD", "MULTI_RECORD"] = "SINGLE_RECORD"


def execution_parameters(served: Served, asked: Asked) -> Response:
    """One record a request: a file of 6 MB has more rows than a model's largest batch. Requests that come together
    share batches here."""
    payload = max(1, min(_PAYLOAD_MB, served.limits.body_bytes // _MIB))
    at_once = min(2 * (os.cpu_count() or 1), _TOGETHER_MB // payload)
    return Response.struct(ExecutionParameters(max(1, at_once), payload))
