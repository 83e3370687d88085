"""Converters as plug-ins: finding them, and running them here or in a tool environment."""
