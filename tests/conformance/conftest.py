"""`edgeserve run` as a process of its own, as clients of the field meet it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.models import SHARED, echo_bundle, labelled_bundle
from tests.conformance.process import Served, serve

# Clients must not notice that several processes answer.
PROCESSES = ["1", "2"]
AS_PROCESSES = ["one process", "two workers"]


@pytest.fixture(scope="session", params=PROCESSES, ids=AS_PROCESSES)
def linear_server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("conformance")
    arguments = ("--shared-memory", SHARED, "--workers", request.param)
    with serve(labelled_bundle(folder), *arguments) as served:
        yield served


@pytest.fixture(params=PROCESSES, ids=AS_PROCESSES)
def controlled_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """One of its own, whose models clients may load and unload."""
    arguments = ("--model-control", "--workers", request.param)
    with serve(labelled_bundle(tmp_path), *arguments) as served:
        yield served


@pytest.fixture(scope="session", params=PROCESSES, ids=AS_PROCESSES)
def echo_server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Served]:
    bundle = echo_bundle(tmp_path_factory.mktemp("conformance"))
    with serve(bundle, "--workers", request.param) as served:
        yield served
