"""The version of edgeserve: read by the build, and by whatever reports it."""

__version__ = "0.1.0"
