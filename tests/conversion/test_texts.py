"""Models with text inputs and outputs, of every rank: from convert to the answer on the wire."""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.client import Question, connect
from edgeserve.errors import DataError
from edgeserve.inspecting.placing import placements_here
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import as_bytes
from tests.conversion.tiny import F, Shape, model, node, noise, saved, target, value
from tests.serve.background import Background

SHAPES: dict[str, Shape] = {"rank0": [], "rank1": ["batch"], "rank2": ["batch", 1]}
COLOURS = ("red", "green", "blue")


def colours(shape: Shape) -> onnx.ModelProto:
    """`s`, a colour's name, to its row in a table, `y` [n,4], and its German name, `t`."""
    encode = helper.make_node(
        "LabelEncoder", ["s"], ["i"], domain="ai.onnx.ml", keys_strings=COLOURS,
        values_int64s=[0, 1, 2], default_int64=3,
    )  # fmt: skip
    translate = helper.make_node(
        "LabelEncoder", ["i"], ["t"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2],
        values_strings=["rot", "grün", "blau"], default_string="nichts",
    )  # fmt: skip
    return model(
        [encode, node("Gather", "table i", "g"), node("Reshape", "g rows", "y"), translate],
        [value("s", TensorProto.STRING, *shape)],
        [value("y", F, "batch", 4), value("t", TensorProto.STRING, *shape)],
        {"table": noise(4, 4), "rows": np.array([-1, 4])},
        ml=2,
    )


@pytest.mark.parametrize("rank", SHAPES)
def test_they_convert_without_data_and_answer_in_python_json_binary_and_grpc(
    tmp_path: Path, rank: str
) -> None:
    shape = [1 if isinstance(d, str) else d for d in SHAPES[rank]]
    bundle = tmp_path / "colours.edge"
    report = edgeserve.convert(
        saved(colours(SHAPES[rank]), tmp_path), bundle, target=target(tmp_path, "onnxruntime"),
        name="colours",
    )  # fmt: skip
    assert any("input 's' BYTES: such as red, green, blue" in r for r in report.remarks)
    inputs, outputs = Bundle.open(bundle).golden()
    assert {type(t) for t in inputs["s"].reshape(-1)} == {bytes}
    assert {b"rot", "grün".encode(), b"blau", b"nichts"} & set(outputs["t"].reshape(-1))
    assert placements_here(Bundle.open(bundle))[0].problem is None  # in a process of its own
    blue = np.array("blue").reshape(shape)
    with edgeserve.load(bundle) as loaded:
        for given in (blue, blue.tolist(), blue.astype(bytes), blue.astype(object)):
            answer = loaded.run({"s": given})
            assert np.allclose(answer["y"], noise(4, 4)[2])
            assert list(map(str, answer["t"].reshape(-1))) == ["blau"]
    with Background(Settings(bundle=str(bundle), http_port=0, grpc_port=0)) as server:
        entry: dict[str, Any] = {"name": "s", "datatype": "BYTES", "shape": shape}
        plain = json.dumps({"inputs": [{**entry, "data": ["blue"]}]}).encode()
        head = json.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": 8}}]}).encode()
        binary = head + struct.pack("<I", 4) + b"blue"
        for body, headers in (
            (plain, {}),
            (binary, {"Inference-Header-Content-Length": str(len(head))}),
        ):
            url = f"{server.url}/v2/models/colours/infer"
            with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
                found = {o["name"]: o for o in json.load(response)["outputs"]}
            assert found["t"]["data"] == ["blau"]
            assert found["t"]["shape"] == shape
        for address in (server.url, f"grpc://{server.started.grpc}"):
            with connect(address) as remote:
                got = remote.infer("colours", Question({"s": as_bytes(blue)}))
            assert np.allclose(got.outputs["y"], noise(4, 4)[2])


def strings(shape: Shape) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    def generate() -> Iterator[dict[str, np.ndarray]]:
        for i in range(40):
            text = [[b"red", b"blue", b"x"][i % 3]]
            yield {"s": np.array(text, dtype=object).reshape([1] * len(shape))}

    return generate


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("kind", ["npz-str", "npz-bytes", "csv", "callable"])
def test_calibration_data_may_be_texts(tmp_path: Path, rank: str, kind: str) -> None:
    shape = SHAPES[rank]
    texts = np.random.default_rng(0).choice([*COLOURS, "größer"], 40)
    texts = texts[:, None] if rank == "rank2" else texts
    given: Any = str(tmp_path / "data.npz")
    if kind == "csv":
        given = str(tmp_path / "data.csv")
        Path(given).write_text("s\n" + "\n".join(texts.reshape(-1)), "utf-8")
    elif kind == "callable":
        given = strings(shape)
    else:
        kept = texts if kind == "npz-str" else np.char.encode(texts, "utf-8")
        np.savez(given, s=kept)
    report = edgeserve.convert(
        saved(colours(shape), tmp_path), tmp_path / "m.edge",
        target=target(tmp_path, "onnxruntime"), calibrate=given,
    )  # fmt: skip
    assert report.proof_samples == 40
    assert [c.runtime for c in report.chain] == ["onnxruntime"]


def test_pickled_texts_are_refused_with_what_to_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", s=np.array(["red"] * 40, object))
    with pytest.raises(DataError, match="pickles") as caught:
        edgeserve.convert(
            saved(colours(["batch"]), tmp_path), tmp_path / "m.edge",
            target=target(tmp_path, "onnxruntime"), calibrate=str(tmp_path / "data.npz"),
        )  # fmt: skip
    assert "dtype=str" in (caught.value.hint or "")
