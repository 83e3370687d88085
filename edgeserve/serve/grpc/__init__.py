"""A gRPC server that knows no protocol. Needs the extra `grpc`, and is imported where a port is asked for."""
