"""What an output holds is read from the graph, from labels or from a flag, never from its shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.bundle import OutputKind
from edgeserve.conversion.sources.kinds import output_kinds, remarks_on, unmoved
from edgeserve.conversion.sources.onnx import read_onnx
from edgeserve.errors import UsageError
from tests.conversion.tiny import I64, F, model, node, noise, saved, value


def kinds(
    made: onnx.ModelProto,
    folder: Path,
    asked: dict[str, str] | None = None,
    labels: int = 0,
    *,
    labelled: bool = False,
) -> dict[str, OutputKind]:
    source = read_onnx(saved(made, folder))
    names = None
    if labels:
        names = folder / "labels.txt"
        names.write_text("\n".join(f"class {i}" for i in range(labels)))
    return output_kinds(
        source.interface, source.proto, asked=asked or {}, labels=names, labelled=labelled
    )


def headed(nodes: Sequence[onnx.NodeProto], *shape: int | str, dtype: int = F) -> onnx.ModelProto:
    """A matrix product `l` [batch,3], and behind it what gives `y`."""
    return model(
        [node("MatMul", "x w", "l"), *nodes],
        [value("x", F, "batch", 8)],
        [value("y", dtype, *(shape or ("batch", 3)))],
        {"w": noise(8, 3), "one": np.float32(1), "axes": np.array([1], np.int64),
         "shape": np.array([-1, 3, 1], np.int64)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "shape", "kind", "axis"),
    [
        ([node("Softmax", "l", "y", axis=-1)], (), "scores", -1),
        ([node("LogSoftmax", "l", "y", axis=1)], (), "scores", -1),
        ([node("Softmax", "l", "s"), node("Log", "s", "y")], (), "scores", -1),
        ([node("Exp", "l", "e"), node("ReduceSum", "e axes", "t"), node("Div", "e t", "y")], (), "scores", -1),
        ([node("Reshape", "l shape", "r"), node("Softmax", "r", "y", axis=1)], ("b", 3, 1), "scores", -2),
        (
            [node("Reshape", "l shape", "r"), node("Softmax", "r", "s", axis=1), node("Transpose", "s", "y", perm=[0, 2, 1])],
            ("b", 1, 3), "scores", -1,
        ),
        ([node("Sigmoid", "l", "y")], (), "probabilities", -1),
        ([node("ReduceL2", "l", "n", axes=[1]), node("Div", "l n", "y")], (), "embedding", -1),
        ([node("Identity", "l", "y")], (), "numbers", -1),
        ([node("Softmax", "l", "s"), node("Mul", "s one", "y")], (), "numbers", -1),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)  # fmt: skip
def test_the_end_of_a_graph_says_what_an_output_holds(
    tmp_path: Path, nodes: list[onnx.NodeProto], shape: tuple[int | str, ...], kind: str, axis: int
) -> None:
    found = kinds(headed(nodes, *shape), tmp_path)["y"]
    assert (found.kind, found.axis) == (kind, axis)


def test_types_say_it_where_they_can(tmp_path: Path) -> None:
    ids = headed([node("ArgMax", "l", "y", axis=1, keepdims=0)], "batch", dtype=I64)
    assert kinds(ids, tmp_path)["y"].kind == "ids"
    rounded = model(
        [node("QuantizeLinear", "x scale zero", "y")],
        [value("x", F, "batch", 8)],
        [value("y", onnx.TensorProto.UINT8, "batch", 8)],
        {"scale": np.float32(0.1), "zero": np.uint8(128)},
    )
    assert kinds(rounded, tmp_path)["y"].kind == "numbers"


def test_labels_make_class_scores_of_what_they_fit(tmp_path: Path) -> None:
    plain = headed([node("Identity", "l", "y")])
    assert kinds(plain, tmp_path, labels=3)["y"] == OutputKind(
        "scores", "its 3 classes have labels"
    )
    assert kinds(plain, tmp_path, labels=4)["y"].kind == "numbers"
    assert kinds(plain, tmp_path, labelled=True)["y"].kind == "scores"


def test_a_name_says_what_an_embedding_is(tmp_path: Path) -> None:
    made = model(
        [node("MatMul", "x w", "sentence_embedding")],
        [value("x", F, "batch", 8)],
        [value("sentence_embedding", F, "batch", 4)],
        {"w": noise(8, 4)},
    )
    assert kinds(made, tmp_path)["sentence_embedding"].kind == "embedding"


def test_a_classifier_of_scikit_learn_has_class_scores(tmp_path: Path) -> None:
    classifier = node(
        "LinearClassifier", "x", "label p", domain="ai.onnx.ml", coefficients=[1.0] * 6,
        intercepts=[0.0, 0.0], classlabels_ints=[0, 1], post_transform="LOGISTIC",
    )  # fmt: skip
    made = model(
        [classifier], [value("x", F, "batch", 3)],
        [value("label", I64, "batch"), value("p", F, "batch", 2)], ml=1,
    )  # fmt: skip
    found = kinds(made, tmp_path)
    assert (found["label"].kind, found["p"].kind) == ("ids", "scores")


def test_what_is_asked_for_decides(tmp_path: Path) -> None:
    made = headed([node("Softmax", "l", "y")])
    assert kinds(made, tmp_path, {"y": "numbers"})["y"].kind == "numbers"
    assert kinds(made, tmp_path, {"": "embedding"})["y"].kind == "embedding"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"z": "scores"}, "no output 'z'"),
        ({"y": "boxes"}, "'boxes' is not a kind of output"),
        ({"y": "text"}, "an output of FP32 is not text"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, asked: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kinds(headed([node("Softmax", "l", "y")]), tmp_path, asked)


def test_the_report_says_how_outputs_are_judged(tmp_path: Path) -> None:
    made = headed([node("Softmax", "l", "y")])
    interface = read_onnx(saved(made, tmp_path)).interface
    (note,) = remarks_on(interface, kinds(made, tmp_path))
    assert note == "output 'y' is judged as class scores: it ends in Softmax"
    plain = headed([node("Identity", "l", "y")])
    (note,) = remarks_on(interface, kinds(plain, tmp_path))
    assert "--output-kind y=scores" in note
    assert remarks_on(interface, kinds(plain, tmp_path, {"y": "scores"})) == []


def test_an_output_that_never_moved_is_named() -> None:
    still = {"alarm": np.zeros((1, 3), np.float32), "bad": np.full((1,), np.nan, np.float32)}
    samples = [{**still, "y": np.full((1, 2), i, np.float32)} for i in range(3)]
    said = "is the same in all 3 samples: they do not show how it changes with the input"
    assert unmoved(samples) == [f"output 'alarm' {said}", f"output 'bad' {said}"]
    assert unmoved(samples[:1]) == []
    texts = [{"t": np.array([b"a"], object)}, {"t": np.array([b"a", b"b"], object)}]
    assert unmoved(texts) == []
