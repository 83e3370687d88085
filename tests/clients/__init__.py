"""Clients of other servers, unchanged, against `edgeserve run`."""
