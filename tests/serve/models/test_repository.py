"""The repository: what is found on disk, loading, replacing, unloading and evicting, with real engines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgeserve.errors import EdgeServeError, InvalidInput, ModelNotFound, ModelUnavailable
from edgeserve.serve.engine import DeadlineExceeded, Engine, Outcome, ResponseCache
from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.opening import Opener
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.models.sources import ModelSource, find_sources
from edgeserve.serve.protocols.v2.config import config_of
from edgeserve.serve.settings.model import PriorityTable
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.status.status import ModelStatus, readiness, server_status
from tests.serve.repositories import shifted_bundle, version


@contextlib.asynccontextmanager
async def repository_of(
    settings: Settings, recorder: Recorder | None = None, budget: int = 0, cache: int = 0
) -> AsyncIterator[ModelRepository]:
    opener = Opener(
        recorder or Recorder(),
        asyncio.get_running_loop(),
        ResponseCache(cache) if cache else None,
    )
    repository = ModelRepository(opener, lambda: find_sources(settings), budget=budget)
    await repository.start(settings.load)
    repository.serve()
    try:
        yield repository
    finally:
        await repository.close()


def versions(repository: ModelRepository) -> tuple[ModelStatus, ...]:
    return server_status(repository).models


async def ask(model: ServedModel, rows: int = 1, seed: int = 0) -> float | EdgeServeError:
    """What the model adds, or its error."""
    x = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    answer: asyncio.Future[Outcome | EdgeServeError] = asyncio.get_running_loop().create_future()
    model.infer(InferRequest({"x": x}, rows, ("y",)), answer.set_result)
    result = await asyncio.wait_for(answer, 60)
    if isinstance(result, EdgeServeError):
        return result
    added = result.outputs["y"] - x
    assert np.ptp(added) < 1e-3
    return round(float(added.mean()), 2)


def folder_settings(folder: Path, **others: object) -> Settings:
    return Settings(repository=str(folder), threads=1, **others)  # type: ignore[arg-type]


def test_load_unload_statistics_config(tmp_path: Path) -> None:
    async def story() -> None:
        shifted_bundle(tmp_path / "m", "a", 1)
        async with repository_of(folder_settings(tmp_path / "m", load=())) as repository:
            with pytest.raises(ModelUnavailable, match="'a' is not ready: it was not asked for"):
                repository.find("a")
            with pytest.raises(ModelNotFound):
                repository.find("other")
            assert [(e.name, e.state) for e in versions(repository)] == [("a", "UNAVAILABLE")]
            assert not repository.ready  # it serves nothing
            await repository.load("a")
            model = repository.find("a")
            assert model.ready
            for rows in (1, 3, 3):
                assert await ask(model, rows) == 1
            statistics = model.statistics()
            assert (statistics.name, statistics.version) == ("a", "1")
            assert (statistics.inference_count, statistics.execution_count) == (7, 3)
            assert statistics.inference_stats.success.count == 3
            assert statistics.inference_stats.compute_infer.ns > 0
            sizes = [(b.batch_size, b.compute_infer.count) for b in statistics.batch_stats]
            assert sizes == [(1, 1), (3, 2)]
            config = config_of(model)
            assert (config.max_batch_size, config.input[0].data_type) == (8, "TYPE_FP32")
            assert config.input[0].dims == [4]
            await repository.load("a")
            assert repository.find("a") is not model
            assert await ask(model) == 1  # who holds the old one is still answered
            with pytest.raises(InvalidInput, match="config"):
                await repository.load("a", {"config": "{}"})
            with pytest.raises(ModelNotFound):
                await repository.load("other")
            held = repository.find("a")
            await repository.unload("a")
            assert isinstance(await ask(held), ModelUnavailable)
            with pytest.raises(ModelUnavailable, match="unloaded"):
                repository.find("a")
            with pytest.raises(ModelNotFound):
                await repository.unload("other")
            assert versions(repository)[0].reason == "it was unloaded"

    asyncio.run(story())


def test_a_model_that_fails_stops_no_other_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        folder = tmp_path / "m"
        shifted_bundle(folder, "good", 1)
        bad = shifted_bundle(folder, "bad", 2)
        weights = bad / "onnx-fp32" / "model.onnx"
        right = weights.read_bytes()
        weights.write_bytes(right[:-1] + b"\0")
        async with repository_of(folder_settings(folder)) as repository:
            assert await ask(repository.find("good")) == 1
            assert not repository.ready
            entry = next(e for e in versions(repository) if e.name == "bad")
            assert (entry.state, "sha256" in entry.reason) == ("UNAVAILABLE", True)
            with pytest.raises(ModelUnavailable, match="not the file the bundle was written with"):
                repository.find("bad")
            weights.write_bytes(right)
            await asyncio.sleep(1.05)  # the pause before the second attempt
            await repository.refresh()
            assert await ask(repository.find("bad")) == 2
            assert repository.ready
            failed = [r.message for r in caplog.records if "cannot be loaded" in r.message]
            assert len(failed) == 1
            assert "(attempt 1)" in failed[0]

    asyncio.run(story())


def test_new_versions_take_over_and_old_ones_go(tmp_path: Path) -> None:
    async def story() -> None:
        folder = tmp_path / "m"
        version(folder, "a", 1, 1)
        recorder = Recorder()
        async with repository_of(folder_settings(folder), recorder) as repository:
            old = repository.find("a")
            version(folder, "a", 2, 2)
            await repository.refresh()
            assert repository.versions("a") == ["2"]
            assert await ask(repository.find("a")) == 2
            assert await ask(old) == 1
            with pytest.raises(ModelNotFound, match="no version '1' of 'a': it has 2"):
                repository.find("a", "1")
            text = ServerMetrics(recorder).render().decode()
            assert 'edgeserve_requests_total{model="a",version="1"} 1.0' in text
            assert 'edgeserve_pending_requests{model="a",version="1"}' not in text
            assert "edgeserve_candidate_info{" in text
            assert not re.search(r'edgeserve_candidate_info\{.*version="1"\}', text)
            version(folder, "a", 3, 3)
            (folder / "a" / "3" / "a.edge" / "manifest.json").write_text("{")
            await repository.refresh()
            assert await ask(repository.find("a")) == 2  # the newer one does not load
            assert repository.ready
            reason = versions(repository)[-1].reason
            assert "a.edge/manifest.json" in reason
            assert str(tmp_path) not in reason

    asyncio.run(story())


def test_all_versions_serve_where_that_is_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        for number in (1, 2, 10):
            version(tmp_path / "m", "a", number, number)
        settings = folder_settings(tmp_path / "m", versions="all")
        async with repository_of(settings) as repository:
            assert repository.versions("a") == ["1", "2", "10"]
            assert await ask(repository.find("a")) == 10
            assert [await ask(repository.find("a", v)) for v in ("1", "2", "10")] == [1, 2, 10]

    asyncio.run(story())


def test_a_budget_keeps_those_in_memory_that_were_asked_for_last(tmp_path: Path) -> None:
    """Each takes two times its 400 kB by the opener's estimate: two fit into 2 MB, the third does not."""

    async def story() -> None:
        for number in (1, 2, 3):
            shifted_bundle(tmp_path / "m", f"m{number}", number, pad_kb=400)
        settings = folder_settings(tmp_path / "m")
        async with repository_of(settings, budget=2_000_000) as repository:

            def in_memory() -> list[str]:
                return [m.name for m in repository.loaded() if m.engine is not None]

            assert in_memory() == ["m1", "m2"]
            assert repository.ready
            assert [e.state for e in versions(repository)] == ["READY"] * 3
            assert await ask(repository.find("m1")) == 1
            assert await ask(repository.find("m3")) == 3
            assert in_memory() == ["m1", "m3"]
            assert await ask(repository.find("m2")) == 2
            assert in_memory() == ["m2", "m3"]
            # All at once: more than there is room for, and everybody gets an answer.
            calls = [
                asyncio.create_task(ask(repository.find(f"m{1 + i % 3}"), seed=i))
                for i in range(60)
            ]
            assert [await call for call in calls] == [1 + i % 3 for i in range(60)]
            assert len(in_memory()) <= 2

    asyncio.run(story())


def test_a_model_larger_than_the_budget_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        shifted_bundle(tmp_path / "m", "small", 1)
        shifted_bundle(tmp_path / "m", "large", 2, pad_kb=900)
        async with repository_of(folder_settings(tmp_path / "m"), budget=1_000_000) as repository:
            assert await ask(repository.find("small")) == 1
            error = await ask(repository.find("large"))
            assert isinstance(error, ModelUnavailable)
            assert "does not fit" in str(error)

    asyncio.run(story())


def test_reloads_under_load_lose_nothing_and_answer_right(tmp_path: Path) -> None:
    """Requests run while versions are replaced again and again; each answer is one of the two right ones,
    and never one from before the last replacement that had ended when it was asked."""

    async def story() -> None:
        folder = tmp_path / "m"
        version(folder, "a", 1, 1, work=20)
        async with repository_of(folder_settings(folder)) as repository:
            newest, answered, ending = 1, 0, False

            async def client(seed: int) -> None:
                nonlocal answered
                while not ending:
                    least = newest
                    added = await ask(repository.find("a"), 1 + seed % 3, seed)
                    assert isinstance(added, float), added
                    assert least <= added <= newest + 1
                    answered += 1

            clients = [asyncio.create_task(client(seed)) for seed in range(8)]
            for number in range(2, 6):
                version(folder, "a", number, number, work=20)
                await repository.refresh()
                newest = number
                await asyncio.sleep(0.05)
            ending = True
            await asyncio.gather(*clients)
            assert answered > 50
            assert await ask(repository.find("a")) == 5

    asyncio.run(story())


def test_unloading_answers_what_was_begun(tmp_path: Path) -> None:
    async def story() -> None:
        shifted_bundle(tmp_path / "m", "a", 1, work=20)
        async with repository_of(folder_settings(tmp_path / "m")) as repository:
            model = repository.find("a")
            calls = [asyncio.create_task(ask(model, seed=i)) for i in range(20)]
            await asyncio.sleep(0)
            await repository.unload("a")
            assert [await call for call in calls] == [1] * 20
            assert model.engine is None

    asyncio.run(story())


def test_answers_are_kept_where_a_cache_is_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        shifted_bundle(tmp_path / "m", "a", 1, work=20)
        shifted_bundle(tmp_path / "m", "b", 2, work=20)
        settings = folder_settings(tmp_path / "m")
        async with repository_of(settings, cache=1_000_000) as repository:
            for model, shift in ((repository.find("a"), 1), (repository.find("b"), 2)):
                for seed in (1, 2, 1, 1):
                    assert await ask(model, 2, seed) == shift
                assert await ask(model, 1, 1) == shift
                statistics = model.statistics().inference_stats
                assert (statistics.cache_hit.count, statistics.cache_miss.count) == (2, 3)
                assert statistics.success.count == 5
                assert model.statistics().execution_count == 3
            shifted_bundle(tmp_path / "new", "a", 5)
            (tmp_path / "m" / "a.edge").rename(tmp_path / "old")
            (tmp_path / "new" / "a.edge").rename(tmp_path / "m" / "a.edge")
            await repository.refresh()
            assert await ask(repository.find("a"), 2, 1) == 5  # nothing of the old one

    asyncio.run(story())


def test_time_runs_out_while_a_model_is_loaded(tmp_path: Path) -> None:
    """The lock that loading needs is held, so the request can only wait."""

    async def story() -> None:
        for number in (1, 2, 3):
            shifted_bundle(tmp_path / "m", f"m{number}", number, pad_kb=400)
        settings = folder_settings(tmp_path / "m")
        async with repository_of(settings, budget=2_000_000) as repository:
            model = repository.find("m3")
            assert model.engine is None
            answers: list[Outcome | EdgeServeError] = []
            x = np.zeros((1, 4), np.float32)
            wanted = ("y",)
            async with repository._versions._memory._lock:
                late = InferRequest({"x": x}, 1, wanted, timeout_s=0.01)
                model.infer(late, answers.append)
                gone = model.infer(InferRequest({"x": x}, 1, wanted), answers.append)
                assert gone is not None
                model.cancel(gone)
                while not answers:  # noqa: ASYNC110 - a timer sets it
                    await asyncio.sleep(0.01)
            assert isinstance(answers[0], DeadlineExceeded)
            assert await ask(model) == 3
            assert len(answers) == 1
            assert model.statistics().inference_count == 1

    asyncio.run(story())


def test_levels_are_counted_apart_while_a_model_is_loaded(tmp_path: Path) -> None:
    async def story() -> None:
        for number in (1, 2, 3):
            shifted_bundle(tmp_path / "m", f"m{number}", number, pad_kb=400)
        own = (PriorityTable(3, queue=2),)
        settings = folder_settings(tmp_path / "m", queue=1, priority_levels=3, priority=own)
        async with repository_of(settings, budget=2_000_000) as repository:
            model = repository.find("m3")
            answers: list[Outcome | EdgeServeError] = []
            wanted = ("y",)
            async with repository._versions._memory._lock:
                for priority in (3, 1, 2, 3, 3):
                    x = np.zeros((1, 4), np.float32)
                    model.infer(
                        InferRequest({"x": x}, 1, wanted, priority=priority), answers.append
                    )
                assert [str(a)[:15] for a in answers] == ["1 requests wait", "2 requests wait"]
            while len(answers) < 5:  # noqa: ASYNC110 - the engine sets it
                await asyncio.sleep(0.01)
            assert [type(a) for a in answers[2:]] == [Outcome] * 3

    asyncio.run(story())


def test_a_model_that_cannot_be_loaded_when_asked_for_says_why(tmp_path: Path) -> None:
    async def story() -> None:
        for number in (1, 2, 3):
            shifted_bundle(tmp_path / "m", f"m{number}", number, pad_kb=400)
        settings = folder_settings(tmp_path / "m")
        weights = tmp_path / "m" / "m3.edge" / "onnx-fp32" / "model.onnx"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        async with repository_of(settings, budget=2_000_000) as repository:
            model = repository.find("m3")
            errors = await asyncio.gather(*(ask(model, seed=i) for i in range(5)))
            assert all(isinstance(e, ModelUnavailable) for e in errors)
            assert "sha256" in str(errors[0])
            again = await ask(model)  # at once, without another attempt
            assert isinstance(again, ModelUnavailable)
            assert not repository.ready
            assert [e.state for e in versions(repository)] == ["READY", "READY", "UNAVAILABLE"]
            assert await ask(repository.find("m1")) == 1

    asyncio.run(story())


def test_what_comes_back_into_memory_is_what_was_there_before(tmp_path: Path) -> None:
    """Or it is refused: its files were overwritten in place, and nobody had the server read them again."""

    async def story() -> None:
        for number in (1, 2, 3):
            shifted_bundle(tmp_path / "m", f"m{number}", number, pad_kb=400)
        other = shifted_bundle(tmp_path / "other", "m1", 7, pad_kb=400)
        settings = folder_settings(tmp_path / "m")
        async with repository_of(settings, budget=2_000_000) as repository:
            assert await ask(repository.find("m1")) == 1
            assert await ask(repository.find("m3")) == 3
            assert await ask(repository.find("m2")) == 2  # m1 is not in memory now
            for path in other.rglob("*"):
                if path.is_file():
                    (tmp_path / "m" / "m1.edge" / path.relative_to(other)).write_bytes(
                        path.read_bytes()
                    )
            refused = await ask(repository.find("m1"))
            assert isinstance(refused, ModelUnavailable)
            assert "is not the file the bundle was written with" in str(refused)
            assert await ask(repository.find("m2")) == 2
            await repository.refresh()
            await asyncio.sleep(0)
            assert await ask(repository.find("m1")) == 7

    asyncio.run(story())


def test_a_link_that_is_switched_brings_the_other_version(tmp_path: Path) -> None:
    async def story() -> None:
        for number in (1, 2):
            shifted_bundle(tmp_path / f"release-{number}", "a", number)
        link = tmp_path / "models"
        link.symlink_to("release-1")
        async with repository_of(folder_settings(link)) as repository:
            before = repository.find("a")
            (tmp_path / "next").symlink_to("release-2")
            (tmp_path / "next").rename(link)  # ln -sfn
            again = repository._versions._opener.open(
                repository._versions._entries["a"]["1"].source, before
            )
            assert again.chain.bundle.root.parent.name == "release-1"
            again.close()
            assert await ask(before) == 1
            await repository.refresh()
            assert await ask(repository.find("a")) == 2
            assert repository.ready

    asyncio.run(story())


def test_a_version_that_is_there_in_part_loads_once_it_is_whole(tmp_path: Path) -> None:
    async def story() -> None:
        folder = tmp_path / "m"
        version(folder, "a", 1, 1)
        made = version(tmp_path / "made", "a", 2, 2) / "a.edge"
        files = sorted((p for p in made.rglob("*") if p.is_file()), key=lambda p: p.parts)
        async with repository_of(folder_settings(folder)) as repository:
            for path in files:
                copy = folder / "a" / "2" / "a.edge" / path.relative_to(made)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes()[:50])
                await repository.refresh()
                assert repository.ready
                assert await ask(repository.find("a")) == 1
                copy.write_bytes(path.read_bytes())
            for entry in repository._versions._entries["a"].values():
                entry.retry_at = 0.0
            await repository.refresh()
            assert await ask(repository.find("a")) == 2
            assert [(e.version, e.state) for e in versions(repository)] == [("2", "READY")]

    asyncio.run(story())


def test_files_that_do_not_load_leave_what_serves(tmp_path: Path) -> None:
    async def story() -> None:
        version(tmp_path / "m", "a", 1, 1)
        async with repository_of(folder_settings(tmp_path / "m")) as repository:
            (tmp_path / "m" / "a" / "1" / "a.edge" / "manifest.json").write_text("{")
            await repository.refresh()
            assert await ask(repository.find("a")) == 1
            assert repository.ready
            (entry,) = versions(repository)
            assert (entry.state, "truncated" in entry.reason) == ("READY", True)

    asyncio.run(story())


def test_a_model_that_never_served_takes_readiness_from_no_other(tmp_path: Path) -> None:
    """But a model that the server started with does, and one that has served."""

    async def story() -> None:
        folder = tmp_path / "m"
        folder.mkdir()
        async with repository_of(folder_settings(folder)) as repository:
            assert not repository.ready  # it serves nothing
            (shifted_bundle(folder, "bad", 2) / "manifest.json").write_text("{")
            await repository.refresh()
            assert not repository.ready
            shifted_bundle(folder, "good", 1)
            await repository.refresh()
            assert repository.ready
            assert repository.load_states() == {("bad", "1"): True, ("good", "1"): False}
            assert repository.load_failures() == {"bad": 1, "good": 0}
            told = readiness(server_status(repository))
            assert (told["good"].ready, told["bad"].ready) == (True, False)
            assert "manifest.json" in told["bad"].failed_versions["1"]
        async with repository_of(folder_settings(folder)) as repository:
            assert await ask(repository.find("good")) == 1
            assert not repository.ready  # it started with both
            shutil.rmtree(folder / "bad.edge")
            await repository.refresh()
            assert repository.ready
            await repository.unload("good")
            assert not repository.ready

    asyncio.run(story())


def test_the_newest_version_that_loads_serves_while_newer_ones_fail(tmp_path: Path) -> None:
    async def story() -> None:
        folder = tmp_path / "m"
        version(folder, "a", 1, 1)
        recorder = Recorder()
        async with repository_of(folder_settings(folder), recorder) as repository:
            for number in (2, 3):
                (version(folder, "a", number, number) / "a.edge" / "manifest.json").write_text("{")
                await repository.refresh()
                assert repository.ready
                assert await ask(repository.find("a")) == 1
            assert set(readiness(server_status(repository))["a"].failed_versions) == {"3"}
            config = folder / "a" / "config.pbtxt"
            config.write_text("dynamic_batching {")
            await repository.refresh()
            assert repository.ready
            assert await ask(repository.find("a")) == 1
            config.unlink()
            version(folder, "a", 4, 4)
            await repository.refresh()
            assert await ask(repository.find("a")) == 4
            assert [(e.version, e.state) for e in versions(repository)] == [("4", "READY")]

    asyncio.run(story())


def test_a_model_that_opens_slowly_holds_back_no_other_at_a_refresh(tmp_path: Path) -> None:
    class Slow(Opener):
        """Model `a` opens once it may."""

        may = threading.Event()

        def open(self, source: ModelSource, model: ServedModel) -> Engine:
            if source.name == "a":
                assert self.may.wait(60)
            return super().open(source, model)

    async def story() -> None:
        folder = tmp_path / "m"
        folder.mkdir()
        settings = folder_settings(folder)
        opener = Slow(Recorder(), asyncio.get_running_loop())
        repository = ModelRepository(opener, lambda: find_sources(settings))
        await repository.start()
        repository.serve()
        for name, adds in (("a", 1), ("b", 2)):
            shifted_bundle(folder, name, adds)
        refreshing = asyncio.ensure_future(repository.refresh())
        async with asyncio.timeout(60):
            while not repository.versions("b"):  # noqa: ASYNC110 - loaded on a thread
                await asyncio.sleep(0.01)
            assert not repository.versions("a")
            assert await ask(repository.find("b")) == 2
            opener.may.set()
            await refreshing
        assert await ask(repository.find("a")) == 1
        await repository.close()

    asyncio.run(story())


@pytest.mark.slow
def test_reloads_leak_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        shifted_bundle(tmp_path / "m", "a", 1, work=20)
        process = psutil.Process()
        seen: list[tuple[int, int]] = []
        resident: list[int] = []
        async with repository_of(folder_settings(tmp_path / "m")) as repository:
            for turn in range(150):
                await repository.load("a")
                assert await ask(repository.find("a"), seed=turn) == 1
                if turn % 50 == 49:
                    while repository._versions._tasks:  # noqa: ASYNC110 - the old ones' grace
                        await asyncio.sleep(0.1)
                    # The event loop's own executor may still grow to its few threads.
                    own = [t for t in threading.enumerate() if not t.name.startswith("asyncio")]
                    seen.append((len(own), process.num_fds()))
                    gc.collect()
                    resident.append(process.memory_info().rss)
        assert all(threads <= seen[0][0] and files <= seen[0][1] for threads, files in seen), seen
        assert resident[-1] - resident[0] < 20_000_000

    asyncio.run(story())
