"""Photographs over gRPC: a BYTES input for an input of images."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image

from edgeserve.serve.settings.server import Settings
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear_bundle
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.asking import ask

COLOURS = ("red", "lime", "blue")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("images")
    settings = Settings(
        bundle=str(colours_bundle(folder)),
        bundles=(str(linear_bundle(folder)),),
        http_port=0,
        grpc_port=0,
    )
    with Background(settings) as running:
        yield running


def logits(server: Background, images: list[bytes], timeout: float = 30.0) -> np.ndarray:
    given = triton.InferInput("image", [len(images)], "BYTES")
    given.set_data_from_numpy(np.array(images, object))
    with triton.InferenceServerClient(str(server.started.grpc)) as client:
        found = client.infer("colours", [given], client_timeout=timeout).as_numpy("logits")
    assert found is not None
    return found


def test_photographs_are_read_as_over_http(server: Background) -> None:
    images = [photograph(colour) for colour in COLOURS]
    found = logits(server, images)
    assert found.argmax(axis=1).tolist() == [0, 1, 2]
    for image, row in zip(images, found, strict=True):
        answer = ask(server, "/v2/models/colours/infer", image, content_type="image/jpeg")
        assert answer.json["outputs"][0]["data"] == pytest.approx(row.tolist(), rel=1e-6)


def test_a_large_photograph_and_typed_contents(server: Background) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    assert len(file.getvalue()) > 65_536
    assert logits(server, [file.getvalue()])[0] == pytest.approx([5, 5, 5], abs=0.2)
    request = messages.ModelInferRequest(model_name="colours")
    entry = request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    entry.contents.bytes_contents.append(photograph("blue"))
    with grpc.insecure_channel(str(server.started.grpc)) as channel:
        data = channel.unary_unary(f"/{SERVICE}/ModelInfer")(request.SerializeToString(), timeout=9)
    response = messages.ModelInferResponse.FromString(data)
    assert np.frombuffer(response.raw_output_contents[0], np.float32).argmax() == 2


def test_many_at_the_same_time_keep_their_answers(server: Background) -> None:
    order = [0, 1, 2] * 8
    images = [photograph(colour) for colour in COLOURS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: int(logits(server, [images[i]]).argmax()), order))
    assert found == order


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([b"\xff\xd8\xff broken"], "the image cannot be read"),
        ([b""], "the image cannot be read"),
        ([photograph(), b"GIF89a"], "image 1 cannot be read"),
        ([photograph()] * 9, "expected 1 to 8 images, got 9"),
    ],
)
def test_what_is_not_read_says_why(server: Background, images: list[bytes], words: str) -> None:
    with pytest.raises(triton.InferenceServerException, match=words) as caught:
        logits(server, images)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert logits(server, [photograph("red")]).argmax() == 0


def test_a_model_without_images_says_what_it_takes(server: Background) -> None:
    request = messages.ModelInferRequest(model_name="linear")
    request.inputs.add(name="x", datatype="BYTES", shape=[1])
    image = photograph()
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
    with (
        grpc.insecure_channel(str(server.started.grpc)) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(request.SerializeToString(), timeout=9)
    assert caught.value.details() == "input 'x': expected FP32, got BYTES"


def test_a_stream_keeps_the_order_of_photographs(server: Background) -> None:
    def requests() -> Iterator[bytes]:
        for colour in COLOURS:
            image = photograph(colour)
            message = messages.ModelInferRequest(model_name="colours", id=colour)
            message.inputs.add(name="image", datatype="BYTES", shape=[1])
            message.raw_input_contents.append(struct.pack("<I", len(image)) + image)
            yield message.SerializeToString()

    with grpc.insecure_channel(str(server.started.grpc)) as channel:
        answers = list(
            channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(requests(), timeout=30)
        )
    found = [messages.ModelStreamInferResponse.FromString(a).infer_response for a in answers]
    assert [each.id for each in found] == list(COLOURS)
    best = [np.frombuffer(e.raw_output_contents[0], np.float32).argmax() for e in found]
    assert best == [0, 1, 2]
