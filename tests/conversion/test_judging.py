"""Models that are not one-output classifiers: wrong int8 is refused with the reason, right int8 is kept, and
what is written serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.conversion.report import Conversion
from edgeserve.errors import CheckFailed, DataError, UsageError
from tests.conversion.test_repair import TARGET
from tests.conversion.tiny import I64, F, model, node, noise, value

SIZE, WIDTH = 12, 16


def network(
    heads: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
    skew: float = 300.0,
) -> onnx.ModelProto:
    """Three convolutions whose channels differ in range, pooled to `f` [batch,16], and then `heads`."""
    scale = np.ones(WIDTH, np.float32)
    scale[::8] = skew
    w1, w2 = noise(WIDTH, 3, 3, 3, scale=0.3, seed=1), noise(WIDTH, WIDTH, 3, 3, scale=0.1, seed=2)
    return model(
        [
            node("Conv", "x w1", "c1", pads=[1] * 4, strides=[2, 2]),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 w2", "c2", pads=[1] * 4),
            node("Relu", "c2", "r2"),
            node("GlobalAveragePool", "r2", "p"),
            node("Flatten", "p", "f"),
            *heads,
        ],
        [value("x", F, "batch", 3, SIZE, SIZE)],
        outputs,
        {
            "w1": w1 * scale[:, None, None, None],
            "w2": w2 / scale[None, :, None, None],
            **constants,
        },
    )


def data(count: int, seed: int = 5) -> np.ndarray:
    contrast = np.random.default_rng(seed).uniform(0.2, 2.0, size=(count, 1, 1, 1))
    return noise(count, 3, SIZE, SIZE, seed=seed) * contrast.astype(np.float32)


def centred(
    made: onnx.ModelProto, name: str, weight: str, bias: str, mean: float, spread: float
) -> None:
    """Make the output `name` of a Gemm have this mean and this spread."""
    session = onnxruntime.InferenceSession(made.SerializeToString())
    values = session.run([name], {"x": data(100)})[0]
    factor = spread / values.std()
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(np.float32), weight))
        if tensor.name == bias:
            moved = np.full_like(array, mean) - factor * values.mean(0)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias))


def regressor() -> onnx.ModelProto:
    made = network(
        [node("Gemm", "f wh bh", "age")],
        [value("age", F, "batch", 1)],
        {"wh": noise(WIDTH, 1, seed=3), "bh": np.zeros(1, np.float32)},
    )
    centred(made, "age", "wh", "bh", 40.0, 12.0)
    return made


def two_outputs() -> onnx.ModelProto:
    """`big` is 500 and a little; `small` stays below 1."""
    return network(
        [node("Gemm", "f wa ba", "big"), node("Gemm", "f wb", "small")],
        [value("big", F, "batch", 8), value("small", F, "batch", 3)],
        {
            "wa": noise(WIDTH, 8, scale=5, seed=3),
            "ba": np.full(8, 500, np.float32),
            "wb": noise(WIDTH, 3, scale=0.2, seed=4),
        },
    )


def converted(
    made: onnx.ModelProto, folder: Path, *recipes: str, **options: object
) -> tuple[Conversion, Bundle]:
    onnx.save(made, folder / "model.onnx")
    np.savez(folder / "x.npz", x=data(160))
    (folder / "one.toml").write_text(TARGET)
    report = edgeserve.convert(
        folder / "model.onnx", folder / "m.edge", target=str(folder / "one.toml"),
        calibrate=folder / "x.npz", calibration_samples=64, recipes=recipes, force=True,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return report, Bundle.open(folder / "m.edge")


def answers(folder: Path, x: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The source's and the bundle's, with the candidate that the bundle is served by."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [o.name for o in session.get_outputs()]
    with edgeserve.load(folder / "m.edge") as served:
        rows = [served.run({"x": x[i : i + 1]}) for i in range(len(x))]
    want = [session.run(names, {"x": x[i : i + 1]}) for i in range(len(x))]
    return [
        {n: np.concatenate([w[k] for w in want]) for k, n in enumerate(names)},
        {n: np.concatenate([r[n] for r in rows]) for n in names},
    ]


@pytest.mark.slow
def test_a_regressor_whose_numbers_are_lost_is_refused(tmp_path: Path) -> None:
    report, _ = converted(regressor(), tmp_path, "static")
    row = next(r for r in report.rows if r.variant == "onnx-int8")
    assert row.failed
    assert row.reason.startswith("output 'age': SQNR ")
    assert row.reason.endswith("dB against its spread over samples, --min-sqnr is 10 dB")
    assert [c.variant for c in report.chain] == ["onnx-fp32"]
    with pytest.raises(CheckFailed, match="was good enough") as refused:
        converted(regressor(), tmp_path, "static", strict=True)
    assert refused.value.hint == (
        "leave out --strict to write the bundle without it, or lower --min-sqnr"
    )


@pytest.mark.slow
def test_a_repaired_regressor_keeps_its_numbers(tmp_path: Path) -> None:
    report, bundle = converted(regressor(), tmp_path)
    assert report.chain[0].variant.startswith("onnx-int8-static-")
    want, got = answers(tmp_path, data(40, seed=9))
    error, spread = (got["age"] - want["age"]).std(), want["age"].std()
    assert error < 0.32 * spread
    (tolerance,) = bundle.manifest.variant(report.chain[0].variant).golden
    assert 0 < tolerance.parts[0].rms <= 0.33 * 13


@pytest.mark.slow
@pytest.mark.parametrize("recipes", [(), ("static",)])
def test_what_convert_accepts_of_two_scales_serves(
    tmp_path: Path, recipes: tuple[str, ...]
) -> None:
    report, bundle = converted(two_outputs(), tmp_path, *recipes)
    want, got = answers(tmp_path, data(40, seed=9))
    for name in ("big", "small"):
        spread = np.sqrt(want[name].var(0).mean())
        assert np.sqrt(np.mean((got[name] - want[name]) ** 2)) < 0.32 * spread
    for candidate in report.chain:
        golden = bundle.manifest.variant(candidate.variant).golden
        assert [t.name for t in golden] == ["big", "small"]
    assert set(bundle.manifest.outputs) == {"big", "small"}


def test_class_ids_count_by_equality(tmp_path: Path) -> None:
    made = network(
        [node("Gemm", "f wh bh", "l"), node("ArgMax", "l", "cls", axis=1, keepdims=0)],
        [value("cls", I64, "batch")],
        {
            "wh": noise(WIDTH, 30, seed=3),
            "bh": np.where(np.arange(30) == 0, -1e9, 0).astype(np.float32),
        },
    )
    report, _ = converted(made, tmp_path, "static")
    row = next(r for r in report.rows if r.variant == "onnx-int8")
    assert row.failed
    assert "output 'cls': it equals the source on" in row.reason


def test_flags_set_bounds_and_kinds_by_output(tmp_path: Path) -> None:
    report, bundle = converted(
        regressor(), tmp_path, "static", min_sqnr={"age": -100.0}, output_kinds={"age": "numbers"}
    )
    assert report.chain[0].variant == "onnx-int8"
    assert bundle.manifest.outputs["age"].because == "--output-kind says so"
    answers(tmp_path, data(2, seed=9))  # it serves
    with pytest.raises(UsageError, match="--min-sqnr: the model has no output 'ages'"):
        converted(regressor(), tmp_path, min_sqnr={"ages": 10.0})


@pytest.mark.slow
def test_columns_of_different_scale_are_repaired_by_their_head(tmp_path: Path) -> None:
    made = network(
        [node("Gemm", "f wh bh", "y")],
        [value("y", F, "batch", 4)],
        {
            "wh": noise(WIDTH, 4, seed=3) * np.float32([10, 1, 0.1, 0.01]),
            "bh": np.float32([40, 170, 3, 0.5]),
        },
    )
    report, bundle = converted(made, tmp_path, "static", "static-equalized", "static-restored")
    plain = next(r for r in report.rows if r.variant == "onnx-int8")
    assert "output 'y[:,3]': SQNR" in plain.reason
    assert [c.variant for c in report.chain] == ["onnx-int8-static-restored"]
    recipe = bundle.manifest.variant("onnx-int8-static-restored").recipe
    assert recipe is not None
    assert len(recipe.kept_fp32) == 1
    want, got = answers(tmp_path, data(40, seed=9))
    error = ((got["y"] - want["y"]) ** 2).mean(0) / want["y"].var(0)
    assert error.max() < 0.1


def test_scores_beside_boxes_stay_right_in_int8(tmp_path: Path) -> None:
    made = network(
        [
            node("Conv", "r2 wb", "b0"),
            node("Sigmoid", "b0", "b1"),
            node("Mul", "b1 pixels", "boxes"),
            node("Conv", "r2 ws", "s0"),
            node("Sigmoid", "s0", "scores"),
            node("Concat", "boxes scores", "joint", axis=1),
            node("Reshape", "joint shape", "y"),
        ],
        [value("y", F, "batch", 6, 36)],
        {
            "wb": noise(4, WIDTH, 1, 1, scale=0.5, seed=3),
            "ws": noise(2, WIDTH, 1, 1, scale=0.5, seed=4),
            "pixels": np.float32(640),
            "shape": np.array([0, 6, 36], np.int64),
        },
        skew=1.0,
    )
    report, bundle = converted(made, tmp_path, "static")
    assert [c.variant for c in report.chain] == ["onnx-int8"]
    assert any("at the end of 'y' in fp32" in remark for remark in report.remarks)
    (tolerance,) = bundle.manifest.variant("onnx-int8").golden
    assert [p.part.spans for p in tolerance.parts] == [((0, 4),), ((4, 6),)]
    want, got = answers(tmp_path, data(40, seed=9))
    scores, kept = want["y"][:, 4:], got["y"][:, 4:]
    assert np.sqrt(np.mean((scores - kept) ** 2)) < 0.2 * scores.std()


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_of_no_class_are_refused(tmp_path: Path, label: int) -> None:
    made = network(
        [node("Gemm", "f w", "l"), node("Softmax", "l", "p5")],
        [value("p5", F, "batch", 5)],
        {"w": noise(WIDTH, 5)},
    )
    onnx.save(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "e.npz", x=data(20), label=np.full(20, label))
    with pytest.raises(DataError, match=f"label {label} is not the index of a class"):
        edgeserve.convert(tmp_path / "m.onnx", tmp_path / "m.edge", evaluate=tmp_path / "e.npz")
