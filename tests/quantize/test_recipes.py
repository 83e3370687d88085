"""Facts about networks, and which recipes are planned from them."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper

from edgeserve.bundle import Precision
from edgeserve.errors import UsageError
from edgeserve.quantize import RECIPES, ModelFacts, VariantPlan, check_names, plans_for
from edgeserve.targets.schema import Quantization
from tests.networks import attention, bottlenecks, perceptron, small_cnn

CONVOLVES = ModelFacts.of(small_cnn())
MULTIPLIES = ModelFacts.of(perceptron(16))


def test_a_cnn_with_a_linear_head_convolves() -> None:
    proto = small_cnn()
    facts = ModelFacts.of(proto)
    assert (facts.convolutions, facts.matmuls, facts.products, facts.softmaxes) == (5, 1, 0, 0)
    assert facts.parameters == sum(numpy_helper.to_array(t).size for t in proto.graph.initializer)
    assert facts.convolves
    assert not facts.attends


def test_attention_is_products_of_activations_and_softmax() -> None:
    facts = ModelFacts.of(attention(width=8))
    assert (facts.matmuls, facts.products, facts.softmaxes) == (4, 2, 1)
    assert facts.attends
    assert not facts.convolves


def test_weights_used_twice_count_once_and_integers_do_not() -> None:
    proto = perceptron(16)
    proto.graph.node[2].input[1] = "first_w"
    proto.graph.initializer.append(
        onnx.helper.make_tensor("n", onnx.TensorProto.INT64, [3], [1] * 3)
    )
    facts = ModelFacts.of(proto)
    assert facts.matmuls == 3
    assert facts.parameters == 2 * 16 * 16 + 16 * 10


def test_weights_in_constant_nodes_are_weights() -> None:
    proto = perceptron(16)
    (first,) = [t for t in proto.graph.initializer if t.name == "first_w"]
    proto.graph.initializer.remove(first)
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["first_w"], value=first))
    facts = ModelFacts.of(proto)
    assert (facts.matmuls, facts.products) == (3, 0)


def names(plans: list[VariantPlan], tier: int | None = None) -> list[str]:
    return [p.recipe for p in plans if p.skip is None and tier in (None, p.tier)]


def plans(
    format_name: str, precision: Precision, facts: ModelFacts, *only: str, **scheme: bool
) -> list[VariantPlan]:
    return plans_for(format_name, precision, facts, Quantization(**scheme), only)


@pytest.mark.parametrize(
    ("format_name", "facts", "first", "second"),
    [
        (
            "onnx",
            CONVOLVES,
            ["static"],
            ["static-equalized", "static-percentile", "static-entropy"],
        ),
        (
            "openvino-ir",
            CONVOLVES,
            ["static", "nncf-onnx", "nncf"],
            ["static-equalized", "static-percentile"],
        ),
        ("tflite", CONVOLVES, ["static", "dynamic"], []),
        ("onnx", MULTIPLIES, ["dynamic", "weights"], ["static"]),
        ("openvino-ir", MULTIPLIES, ["nncf", "weights"], ["static"]),
        ("tflite", MULTIPLIES, ["dynamic", "static"], ["weights"]),
    ],
)
def test_int8_is_planned_by_format_and_structure(
    format_name: str, facts: ModelFacts, first: list[str], second: list[str]
) -> None:
    found = plans(format_name, "int8", facts)
    assert names(found, 1) == first
    assert names(found, 2) == second
    assert len({p.variant for p in found}) == len(found)
    assert all(p.format == format_name and p.precision == "int8" for p in found)


def test_what_cannot_win_is_planned_with_the_reason() -> None:
    skipped = {p.recipe: p.skip for p in plans("onnx", "int8", CONVOLVES) if p.skip}
    assert set(skipped) == {"dynamic", "weights"}
    assert "convolutions in fp32" in (skipped["dynamic"] or "")
    (int4,) = plans("onnx", "int4", ModelFacts(3, 0, 0, 0, 100))
    assert "no constant matrices" in (int4.skip or "")
    (int4,) = plans("onnx", "int4", MULTIPLIES)
    assert int4.skip is None


@pytest.mark.parametrize(
    ("format_name", "precision", "recipes"),
    [
        ("onnx", "fp32", ["plain"]),
        ("tflite", "fp32", ["plain"]),
        ("onnx", "fp16", ["cast"]),
        ("openvino-ir", "fp16", ["cast"]),
        ("tflite", "fp16", []),
        ("openvino-ir", "bf16", ["plain"]),
        ("onnx", "bf16", []),
    ],
)
def test_float_precisions_have_one_recipe_or_none(
    format_name: str, precision: Precision, recipes: list[str]
) -> None:
    assert names(plans(format_name, precision, CONVOLVES)) == recipes


def test_only_restricts_moves_to_the_first_tier_and_overrules_skips() -> None:
    found = plans("onnx", "int8", CONVOLVES, "static-entropy", "dynamic", "nncf")
    assert [(p.recipe, p.tier, p.skip) for p in found] == [
        ("dynamic", 1, None),
        ("static-entropy", 1, None),
    ]
    assert names(plans("onnx", "fp32", CONVOLVES, "static-entropy")) == ["plain"]


def test_16_bit_activations_are_planned_only_when_asked_for() -> None:
    assert "static-16x8" not in names(plans("onnx", "int8", CONVOLVES))
    assert names(plans("onnx", "int8", CONVOLVES, "static-16x8")) == ["static-16x8"]
    assert names(plans("tflite", "int8", CONVOLVES, "static-16x8")) == ["static-16x8"]
    assert names(plans("openvino-ir", "int8", CONVOLVES, "static-16x8")) == []


@pytest.mark.parametrize("facts", [CONVOLVES, MULTIPLIES])
def test_a_device_for_integers_gets_static_int8_alone(facts: ModelFacts) -> None:
    found = plans("tflite", "int8", facts, full_integer=True)
    assert names(found) == ["static"]
    assert names(plans("tflite", "fp32", facts, full_integer=True)) == ["plain"]


def test_variants_are_called_after_format_precision_and_unusual_recipes() -> None:
    assert VariantPlan("onnx", "int8", "static").variant == "onnx-int8"
    assert VariantPlan("openvino-ir", "fp16", "cast").variant == "openvino-fp16"
    assert VariantPlan("openvino-ir", "int8", "nncf").variant == "openvino-int8-nncf"
    assert VariantPlan("onnx", "int4", "weights").variant == "onnx-int4"
    assert VariantPlan("onnx", "int8", "weights").variant == "onnx-int8-weights"


@pytest.mark.parametrize("facts", [CONVOLVES, MULTIPLIES, ModelFacts.of(bottlenecks())])
@pytest.mark.parametrize("format_name", ["onnx", "openvino-ir", "tflite"])
def test_every_planned_recipe_is_a_known_one(facts: ModelFacts, format_name: str) -> None:
    precisions: list[Precision] = ["fp32", "fp16", "bf16", "int8", "int4"]
    found = [p for precision in precisions for p in plans(format_name, precision, facts)]
    assert {p.recipe for p in found} <= set(RECIPES)
    needs_data = {p.recipe for p in found if p.calibrated}
    assert needs_data == {r for r in {p.recipe for p in found} if r.startswith(("static", "nncf"))}


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    check_names(["static", "nncf"])
    with pytest.raises(UsageError, match="no recipe 'static-equalised'") as caught:
        check_names(["static", "static-equalised"])
    assert caught.value.hint == "did you mean 'static-equalized'?"
    with pytest.raises(UsageError) as caught:
        check_names(["zzz"])
    assert "static-percentile" in (caught.value.hint or "")
