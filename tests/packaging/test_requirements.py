"""What a chain needs on the device."""

from __future__ import annotations

import pytest

from edgeserve.bundle import Candidate
from edgeserve.errors import UsageError
from edgeserve.packaging.device import device
from edgeserve.packaging.requirements import canonical, constraints, parse, requirements

ENGINES = {"onnxruntime", "onnxruntime-gpu", "onnxruntime-webgpu", "openvino", "ai-edge-litert"}


def candidate(runtime: str, on: str = "cpu", **options: str) -> Candidate:
    return Candidate("v", runtime, on, options=dict(options))


def names(*chain: Candidate) -> set[str]:
    return {canonical(parse(text).name) for text in requirements(chain, device())}


@pytest.mark.parametrize(
    ("chain", "engines"),
    [
        ([candidate("onnxruntime")], {"onnxruntime"}),
        ([candidate("litert")], {"ai-edge-litert"}),
        ([candidate("openvino"), candidate("onnxruntime")], {"openvino", "onnxruntime"}),
        (
            [
                candidate("onnxruntime", "gpu", provider="CUDAExecutionProvider"),
                candidate("onnxruntime"),
            ],
            {"onnxruntime-gpu"},
        ),
    ],
)
def test_engines_of_the_chain_and_no_others(chain: list[Candidate], engines: set[str]) -> None:
    assert names(*chain) & ENGINES == engines


def test_the_server_is_there_the_build_side_is_not() -> None:
    found = names(candidate("onnxruntime"))
    assert {"numpy", "httptools", "typer", "uvloop"} <= found
    assert not found & {"onnx", "pillow", "nncf", "pytest", "onnxconverter-common"}


def test_extras_of_the_server_come_where_they_are_asked_for() -> None:
    chain = [candidate("onnxruntime")]
    plain, with_grpc = (requirements(chain, device(), extras) for extras in ((), ("grpc",)))
    assert not [text for text in plain if "grpc" in text]
    added = {canonical(parse(text).name) for text in set(with_grpc) - set(plain)}
    assert added == {"grpcio", "grpcio-health-checking", "grpcio-reflection", "protobuf"}


def test_two_builds_of_onnxruntime_are_refused() -> None:
    chain = [
        candidate("onnxruntime", "gpu", provider=f"{name}ExecutionProvider")
        for name in ("CUDA", "WebGpu")
    ]
    with pytest.raises(UsageError, match="needs two builds of onnxruntime") as raised:
        requirements(chain, device())
    assert "overwrite each other" in str(raised.value.cause)


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown runtime 'warp'"):
        requirements([candidate("warp")], device())


def test_versions_here_are_the_versions_there() -> None:
    pinned = constraints()
    assert any(line.startswith("numpy==") for line in pinned)
    assert not any(line.startswith("edgeserve==") for line in pinned)
