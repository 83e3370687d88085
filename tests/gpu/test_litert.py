"""LiteRT's own GPU accelerator on a real GPU API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.bench.subjects import close_all, open_all, select
from edgeserve.bundle import Bundle
from edgeserve.errors import InferenceFailed, UnsupportedModel
from edgeserve.inspecting.placing import placements_here
from edgeserve.isolation import IsolatedSession
from edgeserve.runtimes import LoadOptions, Session, runtime
from edgeserve.runtimes.probing import open_in_child
from tests.gpu.conftest import Driver
from tests.gpu.digits import images, logits
from tests.gpu.scenario import taken_away_and_given_back

pytest.importorskip("ai_edge_litert")


def opened(bundle: Path, **options: str) -> Session:
    files = Bundle.open(bundle).variant_files("tflite-fp32")
    return runtime("litert").load(files, "gpu", LoadOptions(options=dict(options)))


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("rows", [1, 3])
def test_it_gives_the_source_s_numbers(
    litert_bundle: Path, rows: int, capfd: pytest.CaptureFixture[str]
) -> None:
    session = opened(litert_bundle)
    x = images(rows)
    np.testing.assert_allclose(session.run({"image": x})["logits"], logits(x), rtol=1e-3, atol=1e-3)
    kept = session.run({"image": x})["logits"]
    session.run({"image": images(rows, seed=9)})
    np.testing.assert_allclose(kept, logits(x), rtol=1e-3, atol=1e-3)
    session.close()
    assert capfd.readouterr() == ("", "")  # the engine talks a lot


@pytest.mark.usefixtures("driver")
def test_it_says_where_and_in_what_precision_it_runs(litert_bundle: Path) -> None:
    session = opened(litert_bundle)
    placement = session.placement()
    assert placement.describe() == "100 % of MACs on gpu, fp32"
    assert (placement.compute_ops, placement.int8_compute_ops) == (5, 0)
    session.close()
    half = opened(litert_bundle, gpu_precision="fp16")
    assert half.placement().inference_precision == "fp16"
    half.close()


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_inspect_opens_it_and_bench_measures_it_in_a_process_of_its_own(
    litert_bundle: Path,
) -> None:
    bundle = Bundle.open(litert_bundle)
    on_gpu, on_cpu = placements_here(bundle)
    assert (on_gpu.problem, on_cpu.problem) == (None, None)
    assert on_gpu.placement is not None
    assert on_gpu.placement.describe() == "100 % of MACs on gpu, fp32"
    opened, skipped = open_all(bundle, select(bundle))
    close_all(opened)
    assert skipped == []
    assert [isinstance(o.session, IsolatedSession) for o in opened] == [True, False]


def test_without_its_driver_it_is_an_error_in_the_engine_s_words(driver: Driver) -> None:
    """In processes of their own: one that has opened the driver keeps it."""
    driver.take_away()
    found = open_in_child("litert", "gpu", {})
    assert not found.ok
    assert "No adapters found" in (found.error or "")
    assert "Vulkan" in (found.hint or "")
    assert not runtime("litert").probe().opens("gpu")
    driver.give()
    assert open_in_child("litert", "gpu", {}).ok


@pytest.mark.usefixtures("driver")
def test_wrong_shapes_and_options_are_refused(litert_bundle: Path) -> None:
    session = opened(litert_bundle)
    with pytest.raises(InferenceFailed, match="not \\(1, 1, 8, 8\\)"):
        session.run({"image": np.zeros((1, 1, 4, 4), np.float32)})
    session.close()
    with pytest.raises(UnsupportedModel, match="do not have an option 'gpu_speed'"):
        opened(litert_bundle, gpu_speed="high")
    with pytest.raises(UnsupportedModel, match="not int8"):
        opened(litert_bundle, gpu_precision="int8")


@pytest.mark.usefixtures("driver")
def test_a_probe_names_the_hardware() -> None:
    found = open_in_child("litert", "gpu", {})
    assert found.ok, found.error
    assert found.hardware
    assert found.placement == "100 % of operations on gpu, fp32"
    assert runtime("litert").probe().opens("gpu")


@pytest.mark.slow
def test_the_device_is_taken_away_and_given_back(litert_bundle: Path, driver: Driver) -> None:
    taken_away_and_given_back(litert_bundle, driver)
