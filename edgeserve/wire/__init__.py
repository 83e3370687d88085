"""Tensors and messages as bytes; server and client stand on it."""

from typing import Final

# The service of inference.proto.
SERVICE: Final = "inference.GRPCInferenceService"
