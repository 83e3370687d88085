"""Recordings of TF Serving's other models: several inputs, texts, one value of each type, classes, models that are not there.
Bundles have one signature, so a signature there is a model here."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pytest

from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.protocols.oracles import Recorded, needs, recorded, replay
from tests.serve.protocols.tfserving.models import doubled, encoded, half, parity, scalar, texts

# A signature of `types`, and the type.
TYPES: Final = {
    "f32": "FP32", "f64": "FP64", "i8": "INT8", "u8": "UINT8", "i16": "INT16", "i32": "INT32", "i64": "INT64",
    "u64": "UINT64", "u16": "UINT16", "b": "BOOL", "s": "BYTES",
}  # fmt: skip
LOADED: Final = ("half", "texts", "parity", "img", "broken", *(f"types-{s}" for s in TYPES))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("recorded")
    half(folder, 2, 3.0)
    for signature, dtype in TYPES.items():
        scalar(folder, f"types-{signature}", dtype)
    for make in (texts, parity, encoded):
        make(folder)
    doubled(folder, "gone")
    (folder / "broken" / "1").mkdir(parents=True)
    settings = Settings(repository=str(folder), load=LOADED, http_port=0)
    with Background(settings) as running:
        yield running


# Recorded exchanges that are answered otherwise here, by name: our status, and why.
# docs/coming-from/tf-serving.md has the same table.
DIFFERENT = {
    "type u8 256": (400, "integers are never wrapped"),
    "type i16 40000": (400, "integers are never wrapped"),
    "type u16 1": (200, "UINT16 is read and written"),
    "unloaded": (503, "a model that is there but not loaded may come back"),
    "type f32 rank 3": (400, "this bundle's input is one value"),
    "type f32 list": (400, "this bundle's input is one value"),
    "image columns b64 scalar": (400, "this bundle's input has an axis"),
    "image rows named b64": (400, "ONNX Runtime's texts are UTF-8"),
    "image columns named": (400, "ONNX Runtime's texts are UTF-8"),
    "image b64 unpadded": (400, "ONNX Runtime's texts are UTF-8"),
}
SKIPPED = {
    "scalar output, rows": "a signature of `two` that this model does not have",
    "metrics query": "test_rest.py",
}


def asked(exchange: Recorded) -> Recorded:
    """The request for the model here that has that signature."""
    if exchange.sent is None:
        return exchange
    document: Any = json.loads(exchange.sent)
    signature = document.pop("signature_name", "")
    path = exchange.path.replace("/models/two:", "/models/texts:")
    path = path.replace("/models/types:", f"/models/types-{signature}:")
    path = path.replace("/models/half:classify", "/models/parity:classify")
    return exchange._replace(path=path, sent=json.dumps(document).encode())


def ours(exchange: Recorded) -> bool:
    others = any(f"/models/{n}" in exchange.path for n in ("two", "types", "img", "gone", "broken"))
    kinds = "classify" in exchange.path or "regress" in exchange.path
    return (others or kinds) and exchange.name not in SKIPPED


CASES = [e for e in recorded("tfserving") if ours(e)]


def lengths(value: Any) -> Any:
    """`img` answers with lengths there."""
    if isinstance(value, list):
        return [lengths(v) for v in value]
    return len(base64.b64decode(value["b64"], validate=True))


@needs("tfserving")
def test_requests_to_other_models_are_answered_alike(server: Background) -> None:
    assert len(CASES) > 30
    wrong: list[Any] = []
    for exchange in CASES:
        answer = replay(server, asked(exchange))
        expected = DIFFERENT.get(exchange.name, (exchange.status, ""))[0]
        if answer.status != expected:
            wrong.append((exchange.name, exchange.path, exchange.status, answer.status, answer.body[:200]))  # fmt: skip
            continue
        if answer.status >= 400:
            assert answer.json["error"]
        elif exchange.method == "GET":
            theirs, found = exchange.json["model_version_status"], answer.json
            assert [v["state"] for v in found["model_version_status"]] == [v["state"] for v in theirs]  # fmt: skip
            for one, other in zip(found["model_version_status"], theirs, strict=True):
                ok = other["status"]["error_code"] == "OK"
                assert (one["status"]["error_code"] == "OK") == ok, (exchange.name, one)
        elif exchange.status == 200:
            key = next(k for k in ("predictions", "outputs", "results") if k in exchange.json)
            found = answer.json[key]
            found = lengths(found) if "/img:" in exchange.path else found
            if isinstance(found, float):
                assert found == pytest.approx(exchange.json[key])
            else:
                np.testing.assert_equal(found, exchange.json[key], exchange.name)
    assert not wrong, "\n".join(map(str, wrong))
