"""Which candidate is tried first, and how many calls run at a time where nothing is said."""

from __future__ import annotations

import msgspec
import pytest

from edgeserve.bundle import Bundle, Candidate, Fidelity, Measured
from edgeserve.chain import ChainOptions
from edgeserve.chain.planning import first_candidate, matching, planned
from tests.bundles import linear_bundle

CPU = Candidate("onnx-fp32", "onnxruntime", "cpu")
OPENVINO = Candidate("onnx-fp32", "openvino", "cpu")
GPU = Candidate("onnx-fp32", "onnxruntime", "gpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("planning")
    return Bundle.open(linear_bundle(folder, "linear", (CPU, OPENVINO, GPU)))


def measured(bundle: Bundle, latency_ms: float) -> Bundle:
    """The bundle, with a measurement of its first candidate."""
    variant = bundle.manifest.variants[0]
    found = Measured(
        "onnxruntime", "1.0", "cpu", "here", Fidelity(top1_agreement=1.0, sqnr_db=90.0, cosine=1.0,
        max_abs_error=0.0, samples=2), latency_ms, 1.0, "f32", 0, 1,
    )  # fmt: skip
    known = msgspec.structs.replace(variant, measured=(found,))
    return Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, variants=(known,)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ChainOptions(), [CPU, OPENVINO, GPU]),
        (ChainOptions(require="gpu"), [GPU, CPU, OPENVINO]),
        (ChainOptions(device="cpu"), [CPU, OPENVINO]),
        (ChainOptions(device="gpu"), [GPU]),
        (ChainOptions(variant="other"), []),
    ],
)
def test_candidates_are_tried_in_order_the_required_device_first(
    bundle: Bundle, options: ChainOptions, expected: list[Candidate]
) -> None:
    assert matching(bundle.manifest.chain, options) == expected
    assert first_candidate(bundle, options) == (expected or [CPU])[0]


@pytest.mark.parametrize(
    ("latency_ms", "options", "expected"),
    [
        (1.0, ChainOptions(instances=0), (4, 1)),
        (50.0, ChainOptions(instances=0), (1, 0)),
        (1.0, ChainOptions(instances=0, require="gpu"), (1, 0)),  # the GPU was not measured
        (50.0, ChainOptions(instances=0, threads=2), (2, 2)),
    ],
)
def test_quick_models_run_several_calls(
    bundle: Bundle, latency_ms: float, options: ChainOptions, expected: tuple[int, int]
) -> None:
    found = planned(measured(bundle, latency_ms), options, cores=4)
    assert (found.instances, found.threads) == expected
