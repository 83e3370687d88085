"""`edgeserve run` as a process of its own, as clients of the field meet it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.models import SHARED, echo_bundle, labelled_bundle
from tests.conformance.process import Served, serve


@pytest.fixture(scope="session")
def linear_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("conformance")
    with serve(labelled_bundle(folder), "--shared-memory", SHARED) as served:
        yield served


@pytest.fixture
def controlled_server(tmp_path: Path) -> Iterator[Served]:
    """One of its own, whose models clients may load and unload."""
    with serve(labelled_bundle(tmp_path), "--model-control") as served:
        yield served


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(echo_bundle(tmp_path_factory.mktemp("conformance"))) as served:
        yield served
