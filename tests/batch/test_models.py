"""Servers that go away while rows are asked of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.batch import BatchRun, RemoteModel, TensorForm, models, open_source
from edgeserve.client import Access, connect
from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.settings.server import Settings
from tests.batch.test_job import read
from tests.bundles import linear, linear_bundle
from tests.serve.background import Background

ROWS = 20_000


@contextlib.contextmanager
def asked(url: str, source: Path, output: Path) -> Iterator[BatchRun]:
    with connect(url) as client:
        info = client.model("linear")
    rows = open_source(source, info.interface, None)
    with RemoteModel(url, Access(), info, None, 3) as model:
        form = TensorForm(info.interface, (), model.together)
        with BatchRun(source, rows, model, form, output, resume=True) as run:
            yield run


def when_rows_are_written(run: BatchRun, act: Callable[[], object]) -> threading.Thread:
    """A thread that starts to act once rows are written."""
    write, thread = run._write, threading.Thread(target=act)

    def write_and_start(done: Any) -> None:
        write(done)
        if run._rows and thread.ident is None:
            thread.start()

    run._write = write_and_start  # type: ignore[method-assign] # to act in the middle of it
    return thread


def test_a_run_stops_when_its_server_is_gone_and_continues_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = str(linear_bundle(tmp_path))
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    source, output = tmp_path / "x.npy", tmp_path / "out.jsonl"
    np.save(source, x)
    monkeypatch.setattr(models, "_PATIENCE_S", 0.3)
    server = Background(Settings(bundle=bundle, http_port=0))
    port = int(server.url.rpartition(":")[2])
    with asked(server.url, source, output) as run:
        when_rows_are_written(run, server.stop)
        with pytest.raises(EnvironmentProblem):
            run.run()
    server.stop()
    assert 0 < run.progress.rows < ROWS
    back = Background(Settings(bundle=bundle, http_port=port))
    with back, asked(back.url, source, output) as run:
        assert run.resumed > 0
        assert run.run().failed == 0
    rows = read(output)
    assert list(rows) == list(range(ROWS))
    np.testing.assert_allclose(list(rows.values()), linear(x), rtol=1e-4, atol=1e-5)


def test_a_server_that_comes_back_soon_is_waited_for(tmp_path: Path) -> None:
    bundle = str(linear_bundle(tmp_path))
    source, output = tmp_path / "x.npy", tmp_path / "out.jsonl"
    np.save(source, np.ones((ROWS, 4), np.float32))
    server = Background(Settings(bundle=bundle, http_port=0))
    url, port = server.url, int(server.url.rpartition(":")[2])
    back: list[Background] = []

    def restart() -> None:
        server.stop()
        back.append(Background(Settings(bundle=bundle, http_port=port)))

    with asked(url, source, output) as run:
        restarting = when_rows_are_written(run, restart)
        summary = run.run()
    restarting.join()
    back[0].stop()
    assert (summary.rows, summary.failed) == (ROWS, 0)
    assert list(read(output)) == list(range(ROWS))
