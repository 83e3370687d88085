"""What HTTP and gRPC share of Triton's extensions: names, read-only settings, checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from edgeserve.errors import InvalidInput

# https://github.com/triton-inference-server/server/tree/main/docs/protocol
EXTENSIONS: Final = (
    "classification", "model_repository", "model_configuration", "system_shared_memory",
    "binary_tensor_data", "parameters", "statistics", "trace", "logging",
)  # fmt: skip
# Nothing is traced and clients set nothing: a file they could name would be written by the server.
TRACE_SETTINGS: Final[dict[str, Any]] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
LOG_SETTINGS: Final[dict[str, Any]] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
READ_ONLY: Final = "these settings are read-only here: edgeserve run's flags set them"
NO_CUDA: Final = "CUDA shared memory is not supported"
ONE_REPOSITORY: Final = "repository: expected none to be named, this server has one"


def check_unload(parameters: Iterable[str]) -> None:
    """Raises InvalidInput for parameters of an unload other than `unload_dependents`, which changes nothing."""
    unknown = set(parameters) - {"unload_dependents"}
    if unknown:
        raise InvalidInput(f"unload parameter '{min(unknown):.60}' is not known")
