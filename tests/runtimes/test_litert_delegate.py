"""A delegate library as vendors ship them, compiled here, in the real engine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import VariantFiles
from edgeserve.bundle.manifest import Option
from edgeserve.errors import DeviceUnavailable, InferenceFailed
from edgeserve.runtimes import LoadOptions, Session, runtime
from tests.networks import SMALL_CNN, images
from tests.runtimes.test_onnx_placement import SMALL_CNN as WORK

pytest.importorskip("ai_edge_litert")

DATA = Path(__file__).parent.parent / "data"
MODEL = VariantFiles("t", DATA / "small-cnn-fp32.tflite", "tflite", "fp32", SMALL_CNN, batch=1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    made = tmp_path_factory.mktemp("delegate") / "libdense.so"
    command = [compiler, "-shared", "-fPIC", "-O1", str(DATA / "dense_delegate.c"), "-o", str(made)]
    subprocess.run(command, check=True)
    return str(made)


def opened(library: str, **options: Option) -> Session:
    given = LoadOptions(options={"delegate": library, **options})
    return runtime("litert").load(MODEL, "npu", given)


def test_it_computes_its_part_of_the_model(library: str) -> None:
    session, cpu = opened(library), runtime("litert").load(MODEL, "cpu", LoadOptions())
    x = images(3)
    got, wanted = session.run({"image": x}), cpu.run({"image": x})
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-4)
    session.close()
    cpu.close()


def test_what_it_leaves_to_the_cpu_shows_up(library: str) -> None:
    session = opened(library)
    found = session.placement()
    session.close()
    share = WORK["classify"] / sum(WORK.values())
    assert found.mac_shares == pytest.approx({"npu": share, "cpu": 1 - share})
    assert found.shares == pytest.approx({"npu": 1 / 12, "cpu": 11 / 12})
    assert found.left_on_cpu["CONV_2D"] == 4
    assert "FULLY_CONNECTED" not in found.left_on_cpu
    assert found.describe().startswith("<1 % of MACs on npu, fp32; 11 ops on cpu: TRANSPOSE, PAD")


def test_one_that_finds_no_hardware_is_a_missing_device(library: str) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        opened(library, refuse="1")
    assert "dense delegate: no unit found" in (caught.value.cause or "")


def test_one_that_fails_while_running(library: str) -> None:
    session = opened(library, fail="1")
    with pytest.raises(InferenceFailed) as caught:
        session.run({"image": images(1)})
    assert "unit 0 does not answer" in (caught.value.cause or "")
    session.close()
