"""Every fault, at every moment, over every protocol: no request lost, no answer wrong, all counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles import linear_bundle
from tests.fallback.matrix import FAULTS, ONCE, Moment, Protocol, cells, run_cell

QUICK = {
    ("segv", "run", "http"),
    ("hang", "run", "http"),
    ("wrong", "run", "http"),
    ("exception", "run", "http"),
    ("kill", "reload", "http"),
    ("nan", "run", "grpc"),
    ("open-failure", "load", "grpc"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_bundle(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize(
    ("fault", "moment", "protocol"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in cells()],
)
def test_nothing_is_lost_nothing_is_wrong_everything_is_counted(
    bundle: Path, fault: str, moment: Moment, protocol: Protocol
) -> None:
    cell = run_cell(bundle, fault, moment, protocol)
    assert [r.problem for r in cell.replies if r.problem] == []
    assert cell.answered == len(cell.replies)
    assert cell.serving == "gpu"
    reason = FAULTS[fault][moment]
    if reason is None:
        assert cell.fallbacks == {}
        if fault in ONCE:
            assert set(cell.replays) == {fault}
    else:
        # A model that is loaded while the device is away finds it so.
        also = {"unavailable"} if moment == "reload" and fault.startswith("disappear") else set()
        assert {reason} <= set(cell.fallbacks) <= {reason} | also
    if moment != "reload":
        # After a reload the new model serves, whether or not the old one's device came back.
        assert cell.recovered == sum(cell.fallbacks.values())
        assert cell.recovered >= (reason is not None)


def test_every_fault_is_in_the_matrix() -> None:
    from edgeserve.runtimes import inject

    assert {f.partition("=")[0] for f in FAULTS} == set(inject.FAULTS) - {inject.STAND_IN}
