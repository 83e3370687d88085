"""A small bundle, opened once, and rows for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgeserve.batch import LocalModel
from edgeserve.bundle import Bundle
from tests.bundles import linear_bundle


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    bundle = Bundle.open(linear_bundle(tmp_path_factory.mktemp("batch")))
    with LocalModel(bundle, None) as found:
        yield found


@pytest.fixture(scope="session")
def x() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(300, 4)).astype(np.float32)
