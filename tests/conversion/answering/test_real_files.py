"""What real TFLite files show of their task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.bundle import Classification, Scale
from edgeserve.conversion.answering import OutputFacts, decide
from edgeserve.conversion.sources.kinds import output_kinds
from edgeserve.conversion.sources.native import open_native, read_native
from edgeserve.evaluate.made_up import made_up_samples

MLPERF = Path(__file__).parents[4] / "shared" / "data" / "mlperf-tiny"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("kws_ref_model_float32", Classification("Identity")),
        ("kws_ref_model", Classification("Identity", scales={"Identity": Scale(1 / 256, -128)})),
        ("pretrainedResnet", Classification("Identity")),
        (
            "pretrainedResnet_quant",
            Classification("Identity_int8", scales={"Identity_int8": Scale(1 / 256, -128)}),
        ),
    ],
)
def test_classifiers_of_mlperf_tiny(name: str, how: Classification) -> None:
    file = MLPERF / f"{name}.tflite"
    if not file.is_file():
        pytest.skip(f"needs {file.name} of MLPerf Tiny beside the repository")
    model = read_native(file, "tflite")
    kinds = output_kinds(model.interface, None, asked={}, labels=None, labelled=False)
    inputs = list(made_up_samples(model.interface, 5))
    session = open_native(model, threads=1)
    try:
        answers = [{n: np.array(a) for n, a in session.run(x).items()} for x in inputs]
    finally:
        session.close()
    facts = OutputFacts(model.interface, kinds, answers, inputs, scales=model.scales)
    assert decide(facts, None, {}).postprocess == how
