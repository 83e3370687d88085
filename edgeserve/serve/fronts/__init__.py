"""Listeners made from settings, with the protocols they serve."""
