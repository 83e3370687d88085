"""The SageMaker SDK's predictor with its serializers, and boto3, unchanged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgeserve.serve.settings.server import Settings
from tests.conformance.environments import environment
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.repositories import version

pytestmark = pytest.mark.slow

DOUBLED = [[2.0, 4.0], [6.0, 8.0]]
EXPECTED: dict[str, Any] = {
    "json": {"predictions": DOUBLED},
    "json rows": DOUBLED,
    "csv": [["2.0", "4.0"], ["6.0", "8.0"]],
    "npy": {"dtype": "float32", "values": DOUBLED},
    "npy of float64": DOUBLED,
    "json lines": DOUBLED,
    "string": "[[2.0,4.0]]",
    "bytes": "[[2.0,4.0]]",
    "stream": "[[2.0,4.0],[6.0,8.0]]",
    "variant": [[1.0] * 4],
    "tensorflow": {"predictions": [[1.0] * 4]},
    "boto3": {"body": "[[2.0,4.0]]", "type": "application/json", "attributes": "trace=1"},
    "boto3 without a type": {"body": "[[2.0,4.0]]", "type": "application/json", "attributes": None},
    "boto3 csv": {"body": "2.0,4.0\n", "type": "text/csv", "attributes": None},
    "boto3 target model": {
        "body": "[[2.0,2.0,2.0,2.0]]", "type": "application/json", "attributes": None,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client made of its answers, by call."""
    python = environment("sagemaker", "sagemaker==2.257.7")
    folder = tmp_path_factory.mktemp("sagemaker")
    models = folder / "models"
    models.mkdir()
    doubling_bundle(models)
    colours_bundle(models)
    for number in (1, 2):
        version(models, "m", number, float(number))
    image = folder / "photo.jpg"
    image.write_bytes(photograph("green"))
    settings = Settings(bundle=str(models), http_port=0, protocols="sagemaker", versions="all")
    with Background(settings) as server:
        port = server.url.rpartition(":")[2]
        done = subprocess.run(
            [python, Path(__file__).with_name("sagemaker_client.py"), port, image],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("call", EXPECTED)
def test_predictors_and_boto3_are_answered(answers: dict[str, Any], call: str) -> None:
    assert answers[call] == EXPECTED[call]


@pytest.mark.parametrize("call", ["photograph", "photograph with its type"])
def test_a_photograph_is_classified(answers: dict[str, Any], call: str) -> None:
    assert answers[call]["classes"][0]["label"] == "green"


def test_a_serializer_that_is_not_read_gets_a_clear_error(answers: dict[str, Any]) -> None:
    assert (answers["libsvm"]["code"], "text/libsvm" in answers["libsvm"]["message"]) == (415, True)


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [("boto3 error", 400, "not JSON"), ("boto3 unknown model", 404, "unknown model 'nobody'")],
)
def test_boto3_raises_the_cloud_s_own_error(
    answers: dict[str, Any], call: str, status: int, words: str
) -> None:
    found = answers[call]
    assert (found["status"], found["code"]) == (status, "ModelError")
    assert words in found["error"]
