"""What was counted stays counted, whatever becomes of models, devices and workers while the server lives."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.running import Served
from tests.waiting import wait_for

Counts = dict[tuple[str, tuple[tuple[str, str], ...]], float]
BODY = infer_body([[1, 2, 3, 4]])


def counters(text: str) -> Counts:
    """Every value that only grows, by its name and labels."""
    found: Counts = {}
    for family in text_string_to_metric_families(text):
        if family.type in ("counter", "histogram"):
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def ask(url: str, path: str, body: bytes = b"", times: int = 1) -> int:
    with RawClient(url) as client:
        for _ in range(times):
            client.send(post(body, path).replace(b"Host: test", b"Host: localhost"))
            status = client.response()[0]
    return status


def read(url: str, path: str) -> bytes:
    with RawClient(url) as client:
        client.send(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n".encode()
        )
        return client.response()[2]


def lost(before: Counts, after: Counts) -> list[object]:
    """What is gone, or less than it was."""
    return [
        (key, value, after.get(key))
        for key, value in before.items()
        if not after.get(key, -1) >= value
    ]


def test_models_that_come_and_go_keep_what_they_counted(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    linear_bundle(folder)
    settings = Settings(
        repository=str(folder),
        http_port=0,
        model_control=True,
        metrics_compat="triton",
        cache="1MB",
    )
    infer = "/v2/models/linear/infer"
    with Background(settings) as server:
        url = server.url
        before: Counts = {}

        def compared(what: str) -> Counts:
            nonlocal before
            now = counters(read(url, "/metrics").decode())
            assert not lost(before, now), what
            before = now
            return now

        for change in ("unload", "load", "load", "unload", "load"):
            if change == "load":
                ask(url, f"/v2/repository/models/linear/{change}")
            else:
                assert ask(url, f"/v2/repository/models/linear/{change}") == 200
                text = read(url, "/metrics").decode()
                assert "edgeserve_candidate_info{" not in text
                assert "edgeserve_pending_requests{" not in text
            compared(change)
            expected = 503 if change == "unload" else 200
            for number in range(3):
                assert ask(url, infer, infer_body([[number, 2, 3, 4]])) == expected
                ask(url, infer, b"not JSON")
            compared(f"requests after {change}")
        shown = compared("in the end")
        labels = (("model", "linear"), ("version", "1"))
        assert shown["edgeserve_requests_total", labels] == 9
        assert shown["nv_inference_request_success_total", labels] == 9
        assert (
            shown["edgeserve_cache_hits_total", labels]
            + shown["edgeserve_cache_misses_total", labels]
            == 9
        )
        (stats,) = json.loads(read(url, "/v2/models/linear/stats"))["model_stats"]
        assert stats["inference_stats"]["success"]["count"] == 9
        assert stats["inference_stats"]["fail"]["count"] == 9
        (page,) = json.loads(read(url, "/status"))["models"]
        assert (page["answered"], page["failed"]) == (9, {"invalid": 9})


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--metrics-compat", "triton")])
def test_what_a_killed_worker_counted_stays(tmp_path: Path, flags: tuple[str, ...]) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    linear_bundle(folder)
    infer = "/v2/models/linear/infer"
    with Served(tmp_path, folder, "--workers", "2", "--model-control", *flags) as served:
        for round_ in range(2):
            for _ in range(10):
                assert ask(served.url, infer, BODY) == 200
                assert ask(served.url, infer, b"not JSON") == 400
                assert ask(served.url, "/nowhere") == 404
            before = counters(served.metrics())
            (refused,) = [
                v for (n, labels), v in before.items() if ("reason", "unknown_route") in labels
            ]
            assert refused == 10 * (round_ + 1)
            time.sleep(1.2)  # what is counted is left with the supervisor every second
            victim = next(m for m in served.members() if m.pid != served.process.pid)
            victim.send_signal(signal.SIGKILL)

            def replaced(gone: int = victim.pid) -> bool:
                pids = [m.pid for m in served.members()]
                return (
                    len(pids) == 3
                    and gone not in pids
                    and b'"ready":true' in read(served.url, "/v2/health/ready")
                )

            wait_for(replaced, 60)
            after = counters(served.metrics())
            assert not lost(before, after)
            assert ask(served.url, "/v2/repository/models/linear/unload") == 200
            assert not lost(after, counters(served.metrics()))
            assert ask(served.url, "/v2/repository/models/linear/load") == 200
            assert not lost(after, counters(served.metrics()))
        assert served.stop() == 0
