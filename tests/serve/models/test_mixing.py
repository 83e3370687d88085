"""The engine where rows turn out to interact: each request is answered for itself, and nobody by another's rows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from urllib.request import urlopen

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeserve.bundle import Batching, Bundle, Candidate
from edgeserve.bundle.manifest import MANIFEST_NAME, encode
from edgeserve.chain import Chain, ChainOptions
from edgeserve.errors import DeviceLost
from edgeserve.serve.engine import Engine, EngineSettings
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.engine.rules import engine_settings
from tests.serve.engine.test_engine import Batches, Call, assert_own_numbers, keep_busy, some_rows
from tests.serve.slow import MAX_BATCH, slow, slow_bundle, slow_model

UNLUCKY = 0.777


def picky_bundle(folder: Path) -> Path:
    """picky.edge: `slow_model`, without the rows that begin with UNLUCKY, which no neighbour that is tried
    has. Its interface says that there is a row for each."""
    model = slow_model()
    graph = model.graph
    graph.node[-1].output[0] = "all"
    for op, read, made, more in (
        ("Slice", "x start end axis", "first", {}),
        ("Squeeze", "first axis", "score", {}),
        ("Equal", "score unlucky", "out", {}),
        ("Not", "out", "in", {}),
        ("Compress", "all in", "y", {"axis": 0}),
    ):
        graph.node.append(helper.make_node(op, read.split(), made.split(), **more))
    numbers = {"start": [0], "end": [1], "axis": [1]}
    graph.initializer.extend(
        [numpy_helper.from_array(np.int64(v), n) for n, v in numbers.items()]
        + [numpy_helper.from_array(np.float32(UNLUCKY), "unlucky")]
    )
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "found"
    onnx.checker.check_model(model)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", 4)),),
        (TensorSpec("y", "FP32", ("batch", 3)),),
        max_batch=MAX_BATCH,
    )
    x = some_rows(2)
    return write_bundle(folder, "picky", model, interface, {"x": x}, {"y": slow(x)})


def test_answers_that_lack_rows_are_given_one_by_one_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[Candidate, str]] = []

    async def story() -> None:
        chain = Chain(Bundle.open(picky_bundle(tmp_path)), ChainOptions(threads=1, spin=False))
        batches = Batches()
        loop = asyncio.get_running_loop()
        settings = engine_settings()
        engine = Engine(chain, settings, loop, batches, None, lambda c, r: told.append((c, r)))
        try:
            assert engine.batching == f"batches up to {MAX_BATCH}"
            keep_busy(engine)
            rows = [some_rows(1 + seed % 2, seed) for seed in range(8)]
            rows[3][0, 0] = np.float32(UNLUCKY)
            calls = [Call(engine, x) for x in rows]
            for call in calls:
                outcome = await call.outcome()
                left = call.x[call.x[:, 0] != np.float32(UNLUCKY)]
                np.testing.assert_allclose(outcome.outputs["y"], slow(left), rtol=1e-3, atol=1e-3)
                assert outcome.batch == len(call.x)
            assert engine.max_batch == 1
            assert engine.batching.startswith("one at a time: rows interact ('y' had ")
            again = [Call(engine, x) for x in rows]
            assert [(await call.outcome()).batch for call in again] == [len(x) for x in rows]
        finally:
            await asyncio.to_thread(engine.close)

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    ((candidate, reason),) = told
    assert candidate.variant == "onnx-fp32"
    assert "rows interact" in reason
    assert "one at a time from now on" in caplog.text


def two_variants(folder: Path) -> Bundle:
    """slow.edge with a second variant behind the first: the same file, said to mix rows."""
    bundle = Bundle.open(slow_bundle(folder))
    (variant,) = bundle.manifest.variants
    other = msgspec.structs.replace(
        variant, id="other", batching=Batching(1, "rows interact (Some 'node')")
    )
    chain = (*bundle.manifest.chain, Candidate("other", "onnxruntime", "cpu"))
    manifest = msgspec.structs.replace(bundle.manifest, variants=(variant, other), chain=chain)
    (bundle.path / MANIFEST_NAME).write_bytes(encode(manifest))
    return Bundle.open(bundle.path)


def test_a_candidate_that_takes_over_batches_as_it_may_itself(tmp_path: Path) -> None:
    async def story() -> None:
        chain = Chain(two_variants(tmp_path), ChainOptions(threads=1, spin=False))
        batches = Batches()
        engine = Engine(
            chain, engine_settings(batch_delay_s=0.05), asyncio.get_running_loop(), batches
        )
        try:
            assert engine.max_batch == MAX_BATCH
            chain.step_down(chain.serving, DeviceLost("it is gone", reason="crash"))
            assert chain.candidate.variant == "other"
            assert engine.batching == "one at a time: rows interact (Some 'node')"
            calls = [Call(engine, some_rows(rows, rows)) for rows in (1, 2, 1, 3)]
            for call in calls:
                outcome = await call.outcome()
                assert_own_numbers(call, outcome)
                assert outcome.batch == len(call.x)
            assert batches.rows == [1, 2, 1, 3]
        finally:
            await asyncio.to_thread(engine.close)

    asyncio.run(story())


def test_a_batch_that_another_candidate_answers_is_run_one_by_one_there(tmp_path: Path) -> None:
    """The first one fails with a batch in hand; what takes over must not answer that batch."""

    async def story() -> None:
        chain = Chain(two_variants(tmp_path), ChainOptions(threads=1, spin=False))
        batches = Batches()
        engine = Engine(chain, engine_settings(), asyncio.get_running_loop(), batches)
        try:
            keep_busy(engine)
            calls = [Call(engine, some_rows(1, seed)) for seed in range(MAX_BATCH)]
            chain._listeners.clear()  # as if the batch had been taken just before the step
            serving = chain.serving
            serving.failure = DeviceLost("it is gone", reason="crash")  # its next call steps down
            for call in calls:
                outcome = await call.outcome()
                assert_own_numbers(call, outcome)
                assert (outcome.candidate.variant, outcome.batch) == ("other", 1)
        finally:
            await asyncio.to_thread(engine.close)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (engine_settings(), f"batches up to {MAX_BATCH}"),
        (engine_settings(max_batch=8), "batches up to 8"),
        (engine_settings(max_batch=1), "one at a time: batches are limited to one row"),
        (engine_settings(batching=False), "one at a time: batching is turned off"),
    ],
)
def test_how_requests_run_is_said_with_the_reason(
    tmp_path: Path, settings: EngineSettings, words: str
) -> None:
    async def story() -> None:
        chain = Chain(Bundle.open(slow_bundle(tmp_path)), ChainOptions(threads=1, spin=False))
        engine = Engine(chain, settings, asyncio.get_running_loop())
        assert engine.batching == words
        await asyncio.to_thread(engine.close)

    asyncio.run(story())


def test_a_server_says_that_it_batches_no_more(tmp_path: Path) -> None:
    """Clients at once, one of whom has rows that get lost: everybody has the right answer, and it is counted."""
    settings = Settings(
        bundle=str(picky_bundle(tmp_path)), http_port=0, instances=1, threads=1, batch_delay=0.05
    )
    rows = [some_rows(1 + seed % 2, seed) for seed in range(8)]
    rows[5][0, 0] = np.float32(UNLUCKY)
    with Background(settings) as running:
        config = json.load(urlopen(f"{running.url}/v2/models/picky/config"))
        words = config["parameters"]["edgeserve_batching"]["string_value"]
        assert words == f"batches up to {MAX_BATCH}"
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RawClient(running.url)) for _ in rows]
            for client, x in zip(clients, rows, strict=True):
                client.send(post(infer_body(x.tolist()), "/v2/models/picky/infer"))
            for client, x in zip(clients, rows, strict=True):
                status, _, body = client.response()
                assert status == 200
                (y,) = json.loads(body)["outputs"]
                left = x[x[:, 0] != np.float32(UNLUCKY)]
                got = np.reshape(y["data"], y["shape"])
                np.testing.assert_allclose(got, slow(left), rtol=1e-3, atol=1e-3)
        config = json.load(urlopen(f"{running.url}/v2/models/picky/config"))
        words = config["parameters"]["edgeserve_batching"]["string_value"]
        assert words.startswith("one at a time: rows interact ('y' had ")
        assert "dynamic_batching" not in config
        told = urlopen(f"{running.url}/metrics").read().decode()
        stopped = [
            line for line in told.splitlines()
            if line.startswith("edgeserve_batching_stopped_total") and 'model="picky"' in line
        ]  # fmt: skip
        assert [line.rpartition(" ")[2] for line in stopped] == ["1.0"]
        health = json.load(urlopen(f"{running.url}/v2/health/ready"))
        assert health["models"]["picky"]["batching"] == words
