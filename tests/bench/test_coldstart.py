"""Processes that measure load time and memory, and what is said of those that die."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeserve.bench.coldstart import ProbeFailure, Run, cold_starts, probe
from edgeserve.bench.memory import peak_rss_bytes, rss_bytes
from edgeserve.bench.subjects import select
from edgeserve.bundle import Bundle
from tests.bench import acme
from tests.bench.conftest import CPU
from tests.bundles import linear_bundle


def test_a_probe_measures_load_first_inference_and_memory(bundle: Bundle) -> None:
    answer = probe(bundle.root, select(bundle)[1])
    assert isinstance(answer, Run)
    assert answer.load_ms > 0
    assert answer.reload_ms > 0
    assert answer.first_inference_ms > 0
    # The engine takes memory, and less than a hundred of it.
    assert answer.bare_rss_bytes < answer.peak_rss_bytes < 100 * answer.bare_rss_bytes
    assert answer.runtime_version


def test_all_are_probed_in_turns_and_failures_keep_the_engine_s_reason(bundle: Bundle) -> None:
    shares: list[float] = []
    found, skipped = cold_starts(bundle, select(bundle), processes=2, progress=shares.append)
    assert list(found) == ["1"]
    assert found["1"].processes == 2
    (gpu,) = skipped
    assert "onnxruntime cannot open 'gpu'" in gpu.reason
    assert gpu.hint
    assert shares == sorted(shares)


@pytest.mark.usefixtures("acme_runtime")
def test_a_driver_that_crashes_takes_only_its_probe_with_it(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(acme.candidate(fault="abort"), CPU)))
    answer = probe(bundle.root, select(bundle)[0])
    assert isinstance(answer, ProbeFailure)
    assert answer.reason.startswith("the process that opened it died of SIGABRT")
    assert "acme driver: assertion failed" in answer.reason


@pytest.mark.slow
@pytest.mark.usefixtures("acme_runtime")
def test_a_driver_that_hangs_is_given_up(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(acme.candidate(fault="hang"), CPU)))
    answer = probe(bundle.root, select(bundle)[0], timeout_s=3)
    assert answer == ProbeFailure("it did not load and run within 3 s")


@pytest.mark.usefixtures("acme_runtime")
def test_what_an_engine_prints_does_not_mix_with_the_answer(tmp_path: Path) -> None:
    bundle = Bundle.open(linear_bundle(tmp_path, chain=(acme.candidate(fault="chatter"), CPU)))
    assert isinstance(probe(bundle.root, select(bundle)[0]), Run)


def test_files_of_the_current_folder_are_not_imported(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert isinstance(probe(bundle.root.resolve(), select(bundle)[1]), Run)


def test_the_peak_is_at_least_what_is_resident_now() -> None:
    before = rss_bytes()
    block = bytearray(os.urandom(1 << 20) * 32)
    assert peak_rss_bytes() >= rss_bytes() >= before
    assert len(block) == 32 << 20
