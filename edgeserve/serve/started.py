"""What a server reports once it serves: for the start-up table and the process that started it."""

from __future__ import annotations

import asyncio

import msgspec

from edgeserve.chain import Attempt
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.status.status import ModelStatus


class StartedModel(msgspec.Struct, frozen=True):
    """One model that serves: what became of its candidates, how its requests run and share batches. Without `attempts`
    it comes into memory when it is asked for."""

    name: str
    version: str
    attempts: tuple[Attempt, ...] = ()
    inline: bool = False
    batching: str = ""
    instances: int = 1
    placement: str | None = None
    takes_images: bool = False


class Started(msgspec.Struct, frozen=True):
    """What serves, and where; for the start-up table. `failed` are the models that do not, `also` further
    addresses of the same listeners."""

    url: str
    grpc: str | None
    models: tuple[StartedModel, ...]
    failed: tuple[ModelStatus, ...] = ()
    control_url: str | None = None
    also: tuple[str, ...] = ()
    injected: tuple[str, ...] = ()
    workers: int = 1
    protocols: tuple[str, ...] = ()


async def started_model(model: ServedModel) -> StartedModel:
    engine = model.engine
    if engine is None:
        return StartedModel(model.name, model.version)
    placement = await asyncio.to_thread(model.read_placement)
    return StartedModel(
        model.name,
        model.version,
        tuple(model.attempts),
        engine.inline,
        engine.batching,
        engine.settings.instances,
        placement,
        model.images is not None,
    )
