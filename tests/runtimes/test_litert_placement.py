"""Operators of TFLite files, their work, and what a delegate took of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.runtimes.litert_placement import LiteRtOperator, operators_of, placement_on
from tests.runtimes.test_onnx_placement import SMALL_CNN

interpreter = pytest.importorskip("ai_edge_litert.interpreter")

DATA = Path(__file__).parent.parent / "data"


def opened(name: str, *, default_delegates: bool) -> object:
    kinds = interpreter.OpResolverType
    made = interpreter.Interpreter(
        str(DATA / name),
        experimental_op_resolver_type=kinds.AUTO
        if default_delegates
        else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    made.allocate_tensors()
    return made


@pytest.mark.parametrize("name", ["small-cnn-fp32.tflite", "small-cnn-int8.tflite"])
def test_the_work_is_that_of_the_source(name: str) -> None:
    operators = operators_of(opened(name, default_delegates=False))
    assert sorted(o.macs for o in operators if o.macs) == sorted(SMALL_CNN.values())
    assert not any(o.delegated for o in operators)
    assert sum(o.int8 for o in operators) == (6 if "int8" in name else 0)


@pytest.mark.parametrize("name", ["small-cnn-fp32.tflite", "digits-fp32.tflite"])
def test_what_stands_behind_a_delegate_is_found(name: str) -> None:
    """XNNPACK is a delegate, too: a real one that takes what it can."""
    alone = operators_of(opened(name, default_delegates=False))
    operators = operators_of(opened(name, default_delegates=True))
    assert [o.name for o in operators] == [o.name for o in alone]
    assert all(o.delegated for o in operators if o.macs)
    found = placement_on("npu", operators, "fp32")
    assert found.mac_shares == {"npu": 1.0}


def operator(name: str, macs: int | None = 0, *, delegated: bool = False) -> LiteRtOperator:
    return LiteRtOperator(name, macs, int8=False, delegated=delegated)


def test_a_delegate_that_leaves_operators_to_the_cpu() -> None:
    operators = [
        operator("CONV_2D", 900, delegated=True),
        operator("FULLY_CONNECTED", 100),
        operator("SOFTMAX"),
    ]
    found = placement_on("npu", operators, "fp32")
    assert found.mac_shares == {"npu": 0.9, "cpu": 0.1}
    assert found.left_on_cpu == {"FULLY_CONNECTED": 1, "SOFTMAX": 1}
    assert found.describe() == "90 % of MACs on npu, fp32; 2 ops on cpu: FULLY_CONNECTED, SOFTMAX"


def test_a_model_compiled_for_the_edge_tpu() -> None:
    """How much work is inside, the file does not tell."""
    found = placement_on("npu", [operator("edgetpu-custom-op", None), operator("SOFTMAX")], "int8")
    assert (found.shares, found.mac_shares) == ({"npu": 0.5, "cpu": 0.5}, {})
    assert (found.inference_precision, found.compute_ops, found.int8_compute_ops) == ("int8", 1, 1)
    assert found.left_on_cpu == {"SOFTMAX": 1}
