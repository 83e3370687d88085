"""Vertex AI's container contract."""
