"""Coding that goes on only once a test lets it: what else the server does meanwhile can be seen."""

from __future__ import annotations

import threading
from typing import Any, Literal

import pytest

from edgeserve.serve.protocols.v2 import codec as v2
from tests.serve.background import Background
from tests.serve.conftest import RawClient

HEALTH = b"GET /v2/health/ready HTTP/1.1\r\nHost: t\r\n\r\n"


class Held:
    """Decoding, or encoding, that waits for `may_go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, what: Literal["decode", "encode"]) -> None:
        self.begun = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        original = getattr(v2.V2Codec, what)

        def held(*args: Any) -> Any:
            self.begun.release()
            assert self.may_go_on.wait(20), f"nothing else happened during {what}"
            return original(*args)

        monkeypatch.setattr(v2.V2Codec, what, held)

    def wait(self) -> None:
        assert self.begun.acquire(timeout=20)


def failures(server: Background, reason: str) -> int:
    with RawClient(server.url) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
        text = client.response()[2].decode()
    name, label = "edgeserve_request_failures_total", f'reason="{reason}"'
    (line,) = [x for x in text.splitlines() if x.startswith(name) and label in x]
    return int(float(line.rpartition(" ")[2]))


def in_flight(server: Background) -> int:
    with RawClient(server.url) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
        lines = client.response()[2].decode().splitlines()
    (line,) = [x for x in lines if x.startswith("edgeserve_in_flight_requests ")]
    return int(float(line.rpartition(" ")[2]))
