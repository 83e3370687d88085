"""Several server processes on the same ports, for models so small that one event loop is what limits them."""

from edgeserve.serve.supervisor.supervisor import serve_in_processes

__all__ = ["serve_in_processes"]
