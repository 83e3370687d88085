"""The repository over a running server: loading again under load, unloading, what is said meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import Bundle
from edgeserve.chain import Chain, ChainOptions
from edgeserve.errors import EdgeServeError, InvalidInput, ModelNotFound, ModelUnavailable
from edgeserve.serve.engine import EngineSettings, Outcome
from edgeserve.serve.metrics import ServerMetrics
from edgeserve.serve.model import ServedModel
from edgeserve.serve.protocols.v2 import InferRequest, RequestedOutput
from edgeserve.serve.repository import ModelRepository
from tests.bundles import linear


async def ask(model: ServedModel, rows: int) -> Outcome | EdgeServeError:
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    answer: asyncio.Future[Outcome | EdgeServeError] = asyncio.get_running_loop().create_future()
    request = InferRequest({"x": x}, rows, (RequestedOutput("y", False),))
    model.infer(request, answer.set_result)
    result = await answer
    if isinstance(result, Outcome):
        np.testing.assert_allclose(result.outputs["y"], linear(x), rtol=1e-5, atol=1e-5)
    return result


def test_load_unload_statistics_config(bundle: Path) -> None:
    async def story() -> None:
        loop, metrics = asyncio.get_running_loop(), ServerMetrics()

        def served() -> ServedModel:
            chain = Chain(Bundle.open(bundle), ChainOptions(threads=1, spin=False))
            counters = metrics.model("linear", "1")
            return ServedModel("linear", "1", chain, EngineSettings(), counters, loop)

        repository = ModelRepository({"linear": served})
        with pytest.raises(ModelUnavailable, match="'linear' is not ready"):
            repository.find("linear")
        with pytest.raises(ModelNotFound):
            repository.find("other")
        assert [(e.name, e.state) for e in repository.index()] == [("linear", "UNAVAILABLE")]
        await repository.load("linear")
        model = repository.find("linear")
        assert model.ready
        for rows in (1, 3, 3):
            assert isinstance(await ask(model, rows), Outcome)
        statistics = model.statistics()
        assert (statistics.name, statistics.version) == ("linear", "1")
        assert (statistics.inference_count, statistics.execution_count) == (7, 3)
        assert statistics.inference_stats.success.count == 3
        assert statistics.inference_stats.compute_infer.ns > 0
        sizes = [(b.batch_size, b.compute_infer.count) for b in statistics.batch_stats]
        assert sizes == [(1, 1), (3, 2)]
        config = model.config()
        assert (config.max_batch_size, config.input[0].data_type) == (64, "TYPE_FP32")
        assert config.input[0].dims == [4]
        await repository.load("linear")
        assert repository.find("linear") is not model
        with pytest.raises(InvalidInput, match="config"):
            await repository.load("linear", {"config": "{}"})
        await repository.unload("linear")
        assert isinstance(await ask(model, 1), EdgeServeError)
        with pytest.raises(ModelUnavailable, match="unloaded"):
            repository.find("linear")
        with pytest.raises(ModelNotFound):
            await repository.unload("other")
        assert repository.index()[0].reason == "it was unloaded"

    asyncio.run(story())
