"""Keras files and SavedModels, made by TensorFlow in the tool environment, as ONNX in this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeserve.conversion.tools.registry import (
    UnsupportedOperators,
    converter_called,
    run_converter,
)
from edgeserve.errors import UnsupportedModel
from tests.converters.frameworks import interface, load, run_onnx, run_script

pytestmark = pytest.mark.slow

MAKE = """
import os
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")
import keras, numpy as np, tensorflow as tf
from keras import layers as L

keras.utils.set_random_seed(0)
image = keras.Input((16, 16, 3), name="image")
x = L.Conv2D(8, 3, padding="same", use_bias=False)(image)
x = L.ReLU(max_value=6.0)(L.BatchNormalization(name="norm")(x))
x = L.Add()([x, L.DepthwiseConv2D(3, padding="same")(x)])
x = L.GlobalAveragePooling2D()(L.Dropout(0.5)(L.MaxPooling2D()(x)))
x = L.LayerNormalization()(x)
logits = L.Dense(4, name="logits")(x)
cnn = keras.Model(image, [logits, L.Softmax(name="scores")(logits)])
rng = np.random.default_rng(0)
cnn(rng.normal(2, 3, (64, 16, 16, 3)).astype("f"), training=True)  # batch norm gets statistics
cnn.save("cnn.keras"), cnn.save("cnn.h5"), cnn.save_weights("cnn.weights.h5")
cnn.export("cnn", verbose=False)
images = rng.normal(size=(5, 16, 16, 3)).astype("f")
wanted = cnn(images, training=False)
np.savez("cnn.npz", image=images, logits=wanted[0].numpy(), scores=wanted[1].numpy())

p, ids = keras.Input((3,), name="p"), keras.Input((None,), dtype="int32", name="ids")
found = L.GRU(6)(L.Embedding(9, 4)(ids))
two = keras.Model({"p": p, "ids": ids}, {"joined": L.Dense(2)(L.Concatenate()([p, found])), "state": found})
two.save("two.keras")
given = {"p": rng.normal(size=(3, 3)).astype("f"), "ids": rng.integers(0, 9, (3, 7)).astype("int32")}
np.savez("two.npz", **given, **{k: v.numpy() for k, v in two(given, training=False).items()})

keras.Sequential([keras.Input((5,), name="row"), L.Dense(3, name="last")]).save("plain.keras")
code = keras.Sequential([keras.Input((5,)), L.Lambda(lambda x: x * 2)])
code.save("code.keras"), code.save("code.h5")
late = keras.Sequential([L.Dense(3)])
late.save("late.keras")

class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable([2.0, 3.0, 4.0])

    @tf.function(input_signature=[tf.TensorSpec([1, 3], tf.float32, name="x")])
    def fixed(self, x):
        return {"scaled": x * self.scale}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def loose(self, x):
        return {"total": tf.reduce_sum(x * self.scale, 0), "flat": tf.reshape(x, [-1])}

class Files(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def files(self, x):
        tf.io.write_file("executed", "x")
        return {"y": x}

class Unusual(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([3, 3], tf.float32, name="x")])
    def eigen(self, x):
        return {"y": tf.linalg.eigvalsh(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def text(self, text):
        return {"y": tf.strings.length(text)}

module = Module()
plain = tf.Module()
plain.scale = module.scale
tf.saved_model.save(plain, "unsigned")
tf.saved_model.save(module, "several", signatures={"fixed": module.fixed, "loose": module.loose})
for kind, name in ((Files, "files"), (Unusual, "eigen"), (Unusual, "text")):
    module = kind()
    tf.saved_model.save(module, name, signatures={"serving_default": getattr(module, name)})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    run_script("keras-to-onnx", MAKE, folder)
    (folder / "truncated.keras").write_bytes((folder / "cnn.keras").read_bytes()[:3000])
    (folder / "truncated.h5").write_bytes((folder / "cnn.h5").read_bytes()[:3000])
    for name in ("damaged", "hollow"):
        shutil.copytree(folder / "cnn", folder / name)
    graph = folder / "damaged" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:3000])
    shutil.rmtree(folder / "hollow" / "variables")
    return folder


def convert(source: Path, out: Path, **options: object) -> Path:
    name = "tf-saved-model-to-onnx" if source.is_dir() else "keras-to-onnx"
    return run_converter(
        converter_called(name), source, out, options, tool_env=True, say=lambda what, share: None
    )[0]


@pytest.mark.parametrize(
    ("name", "logits", "scores"),
    [
        ("cnn.keras", "logits", "scores"),
        ("cnn.h5", "logits", "scores"),
        ("cnn", "output_0", "output_1"),
    ],
)
def test_a_cnn_gives_keras_numbers_in_any_batch(
    made: Path, tmp_path: Path, name: str, logits: str, scores: str
) -> None:
    file = convert(made / name, tmp_path)
    assert interface(file) == {
        "image": ["batch", 16, 16, 3],
        logits: ["batch", 4],
        scores: ["batch", 4],
    }
    wanted = load(made / "cnn.npz")
    for rows in (slice(0, 5), slice(2, 3)):
        got = run_onnx(file, {"image": wanted["image"][rows]})
        np.testing.assert_allclose(got[logits], wanted["logits"][rows], atol=1e-5)
        np.testing.assert_allclose(got[scores], wanted["scores"][rows], atol=1e-5)
    record = json.loads((tmp_path / "verification.json").read_text())
    assert (record["framework"], record["framework_version"]) == ("tensorflow", "2.21.0")
    assert record["samples"] == 4
    assert record["relative_rms_error"] < 1e-4


def test_dictionaries_of_inputs_and_outputs_and_an_open_length(made: Path, tmp_path: Path) -> None:
    file = convert(made / "two.keras", tmp_path)
    assert interface(file) == {
        "p": ["batch", 3],
        "ids": ["batch", "ids_dim1"],
        "joined": ["batch", 2],
        "state": ["batch", 6],
    }
    wanted = load(made / "two.npz")
    got = run_onnx(file, {name: wanted[name] for name in ("p", "ids")})
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-5)


def test_a_sequential_model_is_named_after_its_ends(made: Path, tmp_path: Path) -> None:
    file = convert(made / "plain.keras", tmp_path)
    assert interface(file) == {"row": ["batch", 5], "last": ["batch", 3]}


def test_a_signature_is_chosen_and_fixed_sizes_stay(made: Path, tmp_path: Path) -> None:
    file = convert(made / "several", tmp_path, signature="fixed")
    assert interface(file) == {"x": [1, 3], "scaled": [1, 3]}
    got = run_onnx(file, {"x": np.ones((1, 3), np.float32)})
    assert got["scaled"].tolist() == [[2, 3, 4]]


def test_only_what_follows_the_batch_is_called_batch(made: Path, tmp_path: Path) -> None:
    file = convert(made / "several", tmp_path, signature="loose")
    assert interface(file) == {"x": ["batch", 3], "total": [3], "flat": ["flat_dim0"]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("code.keras", ["Lambda layer", "SavedModel"]),
        ("code.h5", ["Lambda layer", "SavedModel"]),
        ("late.keras", ["does not know its inputs", "keras.Input"]),
        ("cnn.weights.h5", ["weights alone", "model.save"]),
        ("truncated.keras", ["not a complete .keras archive"]),
        ("truncated.h5", ["cannot load it", "truncated"]),
        ("unsigned", ["no signature", "signatures="]),
        ("several", ["no signature 'serving_default'", "fixed, loose"]),
        ("files", ["WriteFile", "is not run"]),
        ("text", ["input 'text' is of type string"]),
        ("damaged", ["saved_model.pb is damaged"]),
        ("hollow", ["TensorFlow cannot load it", "variables"]),
    ],
)
def test_what_cannot_be_converted_says_why(
    made: Path, tmp_path: Path, name: str, said: list[str]
) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        convert(made / name, tmp_path)
    assert name in raised.value.message
    for text in said:
        assert text in str(raised.value.cause)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_onnx_lacks_is_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperators) as raised:
        convert(made / "eigen", tmp_path)
    assert raised.value.ops == ["SelfAdjointEigV2"]
