"""How models are opened: what of the machine each of several processes takes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgeserve.errors import UsageError
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.models import opening
from edgeserve.serve.models.opening import Opener, chain_options
from edgeserve.serve.models.sources import ModelSource
from edgeserve.serve.settings.reading import settings_from
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.cli.test_run import NPU_THEN_CPU


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_bundle(tmp_path_factory.mktemp("opening"))


def opened(bundle: Path, processes: int, **settings: object) -> tuple[int, int]:
    """The instances of a model, and the threads of each; what opens it is closed."""

    async def main() -> tuple[int, int]:
        opener = Opener(Recorder(), asyncio.get_running_loop(), None, processes)
        given = Settings(bundle=str(bundle), **settings)  # type: ignore[arg-type]
        source = ModelSource("linear", "1", str(bundle), given)
        model = opener.describe(source)
        engine = await asyncio.to_thread(opener.open, source, model)
        try:
            return engine.settings.instances, engine.chain.options.threads
        finally:
            await asyncio.to_thread(engine.close)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("processes", "settings", "expected"),
    [
        (1, {}, (1, 0)),  # never measured: one call, on as many cores as the engine likes
        (4, {}, (1, 2)),
        (4, {"instances": 2}, (2, 1)),
        (4, {"threads": 1}, (2, 1)),
        (16, {}, (1, 1)),
        (4, {"instances": 1}, (1, 2)),
        (4, {"instances": 3, "threads": 2}, (3, 2)),  # who says both has it so
    ],
)
def test_processes_share_the_cores(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    settings: dict[str, int],
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(opening, "usable_cores", lambda: 8)
    assert opened(bundle, processes, **settings) == expected


def test_the_longest_pause_of_a_failed_device_can_be_set() -> None:
    settings = settings_from(
        {"bundle": "a.edge", "reopen": 2, "model": [{"name": "m", "reopen_longest": 30}]}
    )
    assert chain_options(settings).reopen_longest_s == 300
    own = chain_options(settings.of(settings.model[0]))
    assert (own.reopen_s, own.reopen_longest_s) == (2, 30)


def test_an_accelerator_is_for_one_process(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path, "npu", NPU_THEN_CPU)
    assert opened(bundle, 1)[0] == 1
    assert opened(bundle, 2, device="cpu")[0] == 1
    with pytest.raises(UsageError, match="may be opened on npu, which 2 workers"):
        opened(bundle, 2)
