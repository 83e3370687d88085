"""Several server processes on the same ports, for small models that one event loop limits."""

from edgeserve.serve.supervisor.supervisor import serve_in_processes

__all__ = ["serve_in_processes"]
