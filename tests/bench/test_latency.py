"""Single stream over sessions, some of which fail while they are timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.bench.latency import single_stream
from edgeserve.bench.subjects import close_all, open_all, requests_of, select
from edgeserve.bundle import Bundle
from tests.bench import acme
from tests.bench.conftest import CPU
from tests.bundles import linear_bundle


@pytest.mark.usefixtures("acme_runtime")
def test_one_that_fails_while_timed_is_skipped_and_the_others_are_timed(tmp_path: Path) -> None:
    failing = acme.candidate(after=50)
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(failing, CPU)))
    opened, _ = open_all(bundle, select(bundle))
    timed, (skipped,) = single_stream(opened, requests_of(bundle), seconds=0.05, samples=5)
    close_all(opened)
    assert list(timed) == ["1"]
    assert len(timed["1"].ms) >= 5
    assert (skipped.label, skipped.stage) == (failing.label, "run")
    assert skipped.reason == "acme failed on npu: out of tiles"


@pytest.mark.usefixtures("acme_runtime")
def test_when_all_fail_nothing_is_timed(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(acme.candidate(after=20),)))
    opened, _ = open_all(bundle, select(bundle))
    timed, skipped = single_stream(opened, requests_of(bundle), seconds=0.05, samples=5)
    close_all(opened)
    assert timed == {}
    assert len(skipped) == 1
