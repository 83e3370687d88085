"""A served model without an engine, as codecs get it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.opening import Opener
from edgeserve.serve.models.sources import ModelSource
from edgeserve.serve.settings.server import Settings


def opened(bundle: Path) -> ServedModel:
    """The model of a bundle under its file's name. Nothing of it runs: it needs no loop that turns."""
    loop = asyncio.new_event_loop()
    loop.close()
    settings = Settings(bundle=str(bundle))
    return Opener(Recorder(), loop).describe(
        ModelSource(bundle.name.removesuffix(".edge"), "1", str(bundle), settings)
    )
