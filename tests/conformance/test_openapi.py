"""The OpenAPI document: committed as served, true to the routes, and held against them by schemathesis."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.serve.fronts.protocols import route_lists
from edgeserve.serve.http.route import expanded, shown
from edgeserve.serve.protocols.openapi import document
from edgeserve.serve.settings.protocols import PROTOCOLS
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.conformance.environments import environment
from tests.serve.background import Background
from tests.serve.conftest import RawClient

LISTS = route_lists(PROTOCOLS)
WHOLE = document(LISTS)
# Further methods that clients of other servers use.
UNDOCUMENTED = {
    (route.method, path)
    for listed in LISTS
    for route in listed.routes
    if not route.operations
    for path in expanded(shown(route.path))
}
COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    bundle = linear_bundle(tmp_path_factory.mktemp("openapi"))
    settings = Settings(
        bundle=str(bundle), http_port=0, shared_memory="edgeserve-t-", protocols="all"
    )
    with Background(settings) as running:
        yield running


def test_the_committed_document_is_the_one_served(server: Background) -> None:
    committed = json.loads(COMMITTED.read_text())
    assert committed == json.loads(json.dumps(WHOLE)), "make reference"
    with RawClient(server.url) as client:
        client.send(b"GET /openapi.json HTTP/1.1\r\nHost: t\r\n\r\n")
        status, _, body = client.response()
    assert (status, json.loads(body)) == (200, committed)


@pytest.mark.parametrize("path", sorted(WHOLE["paths"]))
def test_every_path_is_a_route_with_these_verbs(server: Background, path: str) -> None:
    target = path.replace("{model}", "linear").replace("{version}", "1").replace("{region}", "r")
    for method in ("GET", "POST"):
        operation = WHOLE["paths"][path].get(method.lower())
        with RawClient(server.url) as client:
            head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
            client.send(head.encode())
            status, _, body = client.response()
        if operation is None:
            assert status == 405 or (method, path) in UNDOCUMENTED, (method, path)
        else:
            assert str(status) in operation["responses"], (method, path, status)
            assert b"no such route" not in body


def test_operations_have_names_of_their_own() -> None:
    names = [o["operationId"] for path in WHOLE["paths"].values() for o in path.values()]
    assert len(set(names)) == len(names)


def test_references_lead_somewhere() -> None:
    for name in re.findall(r'#/components/schemas/(\w+)"', json.dumps(WHOLE)):
        assert name in WHOLE["components"]["schemas"]


# What refuses a body that the schema forbids: its size may, before it is read.
REFUSALS = """[checks]
negative_data_rejection.expected-statuses = ["4xx", "5xx"]
"""


@pytest.mark.slow
def test_schemathesis_finds_no_server_error_and_no_lie(server: Background, tmp_path: Path) -> None:
    python = environment("schemathesis", "schemathesis==4.32.5")
    (tmp_path / "schemathesis.toml").write_text(REFUSALS)
    done = subprocess.run(
        [python.with_name("st"), "run", f"{server.url}/openapi.json", "--checks", "all",
         "--exclude-checks", "positive_data_acceptance",  # a schema cannot say what a model takes
         "-n", "50", "--no-color"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"CI": "1"}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
