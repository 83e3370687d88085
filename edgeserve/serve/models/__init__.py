"""The served models: sources, opening, versions, memory."""
