"""The Open Inference Protocol over gRPC. Needs the extra `grpc`, and is imported where a port is asked for."""

from typing import Final

SERVICE: Final = "inference.GRPCInferenceService"
