"""What a server of one process answers through its Control, while models come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgeserve.errors import InvalidInput, ModelNotFound
from edgeserve.serve.control import OneProcess, Parts
from edgeserve.serve.engine import ResponseCache
from edgeserve.serve.engine.in_flight import InFlight
from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.models.opening import Opener
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.sources import find_sources
from edgeserve.serve.reload import Following
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.shm import SharedMemory
from edgeserve.serve.status.status import readiness
from tests.serve.repositories import shifted_bundle


def test_status_readiness_and_counts_agree(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "a", 1)
    shifted_bundle(tmp_path, "b", 2)
    (shifted_bundle(tmp_path, "bad", 3) / "manifest.json").write_text("{")
    settings = Settings(repository=str(tmp_path), threads=1)

    async def story() -> None:
        recorder = Recorder()
        opener = Opener(recorder, asyncio.get_running_loop(), ResponseCache(1 << 20))
        repository = ModelRepository(opener, lambda: find_sources(settings), readiness="any")
        parts = Parts(
            repository, SharedMemory((), 0), recorder, ServerMetrics(recorder), InFlight(10)
        )
        control = OneProcess(parts, Following(settings, lambda: settings, lambda keys: None))

        async def agreed() -> set[str]:
            """The names of the models that answer, as every answer has it."""
            status = await control.status()
            assert await control.ready() is status.ready
            serving = set(status.serves) if status.serving else set()
            for model in status.models:
                assert await control.answers(model.key) is (model.key in serving)
                assert model.ready is (model.state == "READY")
            assert {n for n, told in readiness(status).items() if told.ready} == {
                name for name, _ in status.serves
            }
            return {name for name, _ in serving}

        await control.open()
        assert await agreed() == set()  # it does not take requests yet
        repository.serve()
        assert await agreed() == {"a", "b"}
        bad = next(m for m in (await control.status()).models if m.name == "bad")
        assert (bad.load_failed, bad.device) == (True, None)
        await control.unload("a")
        assert await agreed() == {"b"}
        await control.load("a")
        assert await agreed() == {"a", "b"}
        for name, parameters, error in (
            ("none", None, ModelNotFound),
            ("a", {"config": "{}"}, InvalidInput),
        ):
            with pytest.raises(error):
                await control.load(name, parameters)
        assert await control.answers(("none", "1")) is False
        recorder.model("a", "1").failed("timeout")
        counts = await control.counts()
        assert counts.requests()["a", "1"].failed == {"timeout": 1}
        assert {s.name: s.inference_stats.fail.count for s in counts.statistics()} == {
            "a": 1,
            "b": 0,
        }
        assert b'reason="timeout"' in counts.metrics()
        assert not counts.silent
        repository.stop_serving()
        assert await agreed() == set()
        await repository.close()

    asyncio.run(story())
