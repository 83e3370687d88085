"""What Triton's extensions say that is the same for every protocol: names, read-only settings."""

from __future__ import annotations

from typing import Any, Final

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
NO_CUDA: Final = "CUDA shared memory is not served here"
