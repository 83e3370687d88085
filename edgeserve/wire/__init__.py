"""Tensors and messages as bytes; server and client stand on it."""
