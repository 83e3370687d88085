"""Loopback is both addresses: clients that are told `localhost` try either first."""

from __future__ import annotations

import json
import logging
import socket
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.access import addresses
from edgeserve.serve.access.addresses import addresses_of, joined
from edgeserve.serve.access.keys import INFER_VARIABLE
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post

BOTH = addresses_of("localhost")
needs_ipv6 = pytest.mark.skipif(len(BOTH) < 2, reason="there is no IPv6 here")


def port_of(url: str | None) -> int:
    assert url is not None
    return urlsplit(url if "//" in url else f"//{url}").port or 0


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [("127.0.0.1", 8000, "127.0.0.1:8000"), ("::1", 0, "[::1]:0"), ("name", 1, "name:1")],
)
def test_addresses_are_written_as_urls_have_them(host: str, port: int, text: str) -> None:
    assert joined(host, port) == text


def test_other_hosts_are_what_they_are() -> None:
    assert [addresses_of(h) for h in ("0.0.0.0", "::1", "127.0.0.1", "gateway")] == [
        ("0.0.0.0",), ("::1",), ("127.0.0.1",), ("gateway",)
    ]  # fmt: skip


@needs_ipv6
def test_every_listener_is_on_both_addresses_with_one_port(bundle: Path) -> None:
    settings = Settings(
        bundle=str(bundle), http_port=0, grpc_port=0, control_port=0, model_control=True
    )
    with Background(settings) as server:
        started = server.started
        http, control, rpc = map(port_of, (started.url, started.control_url, started.grpc))
        assert len({http, control, rpc}) == 3
        assert started.also == (
            f"http://[::1]:{http}", f"control plane http://[::1]:{control}", f"gRPC [::1]:{rpc}"
        )  # fmt: skip
        for host in BOTH:
            assert json.loads(get(f"http://{joined(host, http)}/v2/health/live")) == {"live": True}
            with RawClient(f"http://{host}:{http}") as client:
                client.send(post(infer_body([[1, 2, 3, 4]])))
                assert client.response()[0] == 200
            load = urllib.request.Request(
                f"http://{joined(host, control)}/v2/repository/models/linear/load", method="POST"
            )
            with urllib.request.urlopen(load, timeout=20) as answer:
                assert answer.status == 200
            with grpc.insecure_channel(joined(host, rpc)) as channel:
                grpc.channel_ready_future(channel).result(timeout=10)
        with triton_http.InferenceServerClient(f"localhost:{http}") as by_http:
            assert by_http.is_server_ready()
        with triton_grpc.InferenceServerClient(f"localhost:{rpc}") as by_grpc:
            assert by_grpc.is_server_ready()
    for host in BOTH:
        with pytest.raises(OSError):
            socket.create_connection((host, http), timeout=5)


@needs_ipv6
def test_requests_on_both_addresses_are_answered_before_the_server_ends(bundle: Path) -> None:
    server = Background(Settings(bundle=str(bundle), http_port=0))
    port = port_of(server.url)
    clients = [RawClient(f"http://{host}:{port}") for host in BOTH]
    for client in clients:
        client.send(post(infer_body([[1, 2, 3, 4]]))[:-3])
    time.sleep(0.1)
    server._loop.call_soon_threadsafe(server._stop.set)
    time.sleep(0.1)
    for client in clients:
        client.send(post(infer_body([[1, 2, 3, 4]]))[-3:])
        assert client.response()[0] == 200
        client.close()
    server.stop()


@needs_ipv6
def test_one_that_is_taken_is_told_and_not_claimed(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as http,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as rpc,
    ):
        ports = [taken.getsockname()[1] for taken in (http, rpc)]
        settings = Settings(bundle=str(bundle), http_port=ports[0], grpc_port=ports[1])
        with Background(settings) as server:
            assert server.started.also == ()
            assert server.url == f"http://127.0.0.1:{ports[0]}"
            get(f"{server.url}/v2/health/live")
    for port in ports:
        assert f"only 127.0.0.1:{port} is listened on: cannot listen on [::1]:{port}" in caplog.text
    assert all(r.levelno == logging.WARNING for r in caplog.records if "only" in r.message)


def test_without_ipv6_there_is_one_address_and_no_warning(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(addresses, "_has_ipv6", lambda: False)
    with Background(Settings(bundle=str(bundle), http_port=0, grpc_port=0)) as server:
        assert server.started.also == ()
        get(f"{server.url}/v2/health/live")
    assert "listened on" not in caplog.text


def test_the_first_address_must_be_free(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=f"cannot listen on 127.0.0.1:{port}"):
            Background(Settings(bundle=str(bundle), http_port=port))


def test_one_address_alone_where_it_is_asked_for(bundle: Path) -> None:
    with Background(Settings(bundle=str(bundle), host="127.0.0.1", http_port=0)) as server:
        assert server.started.also == ()
        if len(BOTH) > 1:
            with pytest.raises(OSError):
                socket.create_connection(("::1", port_of(server.url)), timeout=5)


def test_keys_are_asked_for_on_both(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INFER_VARIABLE, "infer-key-0123456789")
    with Background(Settings(bundle=str(bundle), http_port=0)) as server:
        for host in BOTH:
            with RawClient(f"http://{host}:{port_of(server.url)}") as client:
                client.send(post(infer_body([[1, 2, 3, 4]])))
                assert client.response()[0] == 401
