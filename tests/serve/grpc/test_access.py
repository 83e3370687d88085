"""Keys, TLS, and the control plane over gRPC: the same rules as over HTTP."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException, shared_memory

from edgeserve.errors import UsageError
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear
from tests.serve.access.test_tls import Authority
from tests.serve.background import Background
from tests.serve.grpc.conftest import (
    address,
    method,
    request,
    samples,
    settings,
    tensor,
)
from tests.waiting import wait_for

INFER, CONTROL = "infer-key-0123456789", "control-key-0123456789"
PREFIX = "edgeserve-grpc-test-"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"infer {INFER}\ncontrol {CONTROL}\n")
    return file


@pytest.fixture(scope="module")
def keyed(bundle: Path, key_file: Path) -> Iterator[Background]:
    with Background(settings(bundle, keys=str(key_file), model_control=True)) as running:
        yield running


@pytest.fixture(scope="module")
def controlled(bundle: Path) -> Iterator[Background]:
    with Background(settings(bundle, model_control=True, shared_memory=PREFIX)) as running:
        yield running


def code_of(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


INFERS = ("ModelInfer", request().SerializeToString())
LOADS = (
    "RepositoryModelLoad",
    messages.RepositoryModelLoadRequest(model_name="linear").SerializeToString(),
)
INDEX = ("RepositoryIndex", b"")
READY = ("ServerReady", b"")


@pytest.mark.parametrize(
    ("metadata", "codes"),
    [
        ((), ["OK", "UNAUTHENTICATED", "UNAUTHENTICATED", "UNAUTHENTICATED"]),
        ((("authorization", "Bearer nope-nope-nope-nope"),), ["OK"] + ["UNAUTHENTICATED"] * 3),
        ((("authorization", INFER),), ["OK"] + ["UNAUTHENTICATED"] * 3),
        ((("authorization", f"Bearer {INFER}"),), ["OK", "OK", "OK", "PERMISSION_DENIED"]),
        ((("x-api-key", INFER),), ["OK", "OK", "OK", "PERMISSION_DENIED"]),
        ((("authorization", f"bearer {CONTROL}"),), ["OK"] * 4),
        ((("x-api-key", CONTROL),), ["OK"] * 4),
    ],
    ids=["none", "unknown", "no bearer", "infer", "x-api-key", "control", "x-api-key control"],
)
def test_keys_give_roles(
    keyed: Background, metadata: tuple[tuple[str, str], ...], codes: list[str]
) -> None:
    with grpc.insecure_channel(address(keyed)) as channel:
        got = [
            code_of(lambda n=name, d=data: method(channel, n)(d, metadata=metadata))
            for name, data in (READY, INDEX, INFERS, LOADS)
        ]
    assert got == codes


def test_streams_and_reflection_need_a_key_and_probes_do_not(keyed: Background) -> None:
    with grpc.insecure_channel(address(keyed)) as channel:
        for name in (
            f"{SERVICE}/ModelStreamInfer",
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ):
            # Refused at once, though nothing was sent yet.
            call = channel.stream_stream(f"/{name}")(quiet())
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        probe = health_pb2_grpc.HealthStub(channel)
        assert probe.Check(health_pb2.HealthCheckRequest()).status == 1


def quiet() -> Iterator[bytes]:
    time.sleep(0.5)
    yield from ()


def test_tritonclient_with_a_key(keyed: Background) -> None:
    x = samples(2)
    headers = {"authorization": f"Bearer {INFER}"}
    with triton.InferenceServerClient(address(keyed)) as client:
        result = client.infer("linear", [tensor("x", x)], headers=headers)
        np.testing.assert_allclose(result.as_numpy("y"), linear(x), rtol=1e-5, atol=1e-6)
        with pytest.raises(InferenceServerException, match="a key is needed"):
            client.infer("linear", [tensor("x", x)])


# the control plane


def test_models_load_and_unload(controlled: Background) -> None:
    with (
        triton.InferenceServerClient(address(controlled)) as client,
        grpc.insecure_channel(address(controlled)) as channel,
    ):
        probe = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="linear")
        client.unload_model("linear")
        assert not client.is_model_ready("linear")
        wait_for(lambda: probe.Check(asked).status == 2)
        (entry,) = client.get_model_repository_index().models
        assert (entry.state, entry.reason) == ("UNAVAILABLE", "it was unloaded")
        with pytest.raises(InferenceServerException, match="not ready") as caught:
            client.infer("linear", [tensor("x", samples(1))])
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        client.load_model("linear")
        assert client.is_model_ready("linear")
        assert probe.Check(asked).status == 1
        client.infer("linear", [tensor("x", samples(1))])
        client.unload_model("nope")  # no error, as with Triton
        with pytest.raises(InferenceServerException, match="no model 'nope'"):
            client.load_model("nope")
        with pytest.raises(InferenceServerException, match="load parameter 'config' is not taken"):
            client.load_model("linear", config="{}")


def test_the_control_plane_at_its_own_address_is_not_here(bundle: Path) -> None:
    with (
        Background(settings(bundle, model_control=True, control_port=0)) as server,
        grpc.insecure_channel(address(server)) as channel,
    ):
        name, data = LOADS
        with pytest.raises(grpc.RpcError, match="not on this address") as caught:
            method(channel, name)(data)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert method(channel, "ModelInfer")(INFERS[1])


# shared memory


def test_tensors_in_shared_memory(controlled: Background) -> None:
    x = samples(3)
    sent = shared_memory.create_shared_memory_region("in", f"/{PREFIX}in", x.nbytes)
    got = shared_memory.create_shared_memory_region("out", f"/{PREFIX}out", 64)
    try:
        shared_memory.set_shared_memory_region(sent, [x])
        with triton.InferenceServerClient(address(controlled)) as client:
            client.register_system_shared_memory("in", f"/{PREFIX}in", x.nbytes)
            client.register_system_shared_memory("out", f"/{PREFIX}out", 64)
            regions = client.get_system_shared_memory_status().regions
            assert {n: (r.key, r.byte_size) for n, r in regions.items()} == {
                "in": (f"/{PREFIX}in", x.nbytes),
                "out": (f"/{PREFIX}out", 64),
            }
            given = triton.InferInput("x", x.shape, "FP32")
            given.set_shared_memory("in", x.nbytes)
            asked = triton.InferRequestedOutput("y")
            asked.set_shared_memory("out", 48, offset=16)
            result = client.infer("linear", [given], outputs=[asked])
            assert list(result.get_response().raw_output_contents) == [b""]
            output = result.get_output("y")
            assert list(output.shape) == [3, 3]
            assert output.parameters["shared_memory_byte_size"].int64_param == 36
            y = shared_memory.get_contents_as_numpy(got, np.float32, [3, 3], offset=16)
            np.testing.assert_allclose(y, linear(x), rtol=1e-5, atol=1e-6)

            asked.set_shared_memory("out", 48, offset=32)
            with pytest.raises(InferenceServerException, match="at most 64 bytes"):
                client.infer("linear", [given], outputs=[asked])
            given.set_shared_memory("nope", x.nbytes)
            with pytest.raises(InferenceServerException) as caught:
                client.infer("linear", [given])
            assert caught.value.status() == "StatusCode.NOT_FOUND"
            client.unregister_system_shared_memory()
            assert not client.get_system_shared_memory_status().regions
            with pytest.raises(InferenceServerException, match="that this server allows"):
                client.register_system_shared_memory("in", "/other", 16)
    finally:
        shared_memory.destroy_shared_memory_region(sent)
        shared_memory.destroy_shared_memory_region(got)


# TLS

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the keys")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def secure(
    server: Background, authority: Authority, own: tuple[Path, Path] | None = None
) -> grpc.Channel:
    certificate, key = (None, None) if own is None else (p.read_bytes() for p in own)
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, certificate)
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(address(server), credentials, options)


def infer_code(channel: grpc.Channel) -> str:
    with channel:
        return code_of(lambda: method(channel, "ModelInfer")(INFERS[1], timeout=10))


@needs_openssl
def test_tls_and_a_renewed_certificate(authority: Authority, bundle: Path, tmp_path: Path) -> None:
    certificate, key = authority.issue("first", "first")
    other = Authority(tmp_path / "other")
    with Background(settings(bundle, tls_cert=str(certificate), tls_key=str(key))) as server:
        assert infer_code(secure(server, authority)) == "OK"
        assert infer_code(grpc.insecure_channel(address(server))) == "UNAVAILABLE"
        assert infer_code(secure(server, other)) == "UNAVAILABLE"
        with triton.InferenceServerClient(
            address(server), ssl=True, root_certificates=str(authority.certificate)
        ) as client:
            assert client.is_server_ready()

        old = key.read_bytes()
        key.write_bytes(b"half-written")
        assert infer_code(secure(server, authority)) == "OK"
        key.write_bytes(old)
        for new, place in zip(other.issue("second", "second"), (certificate, key), strict=True):
            place.write_bytes(new.read_bytes())
        assert infer_code(secure(server, authority)) == "UNAVAILABLE"
        assert infer_code(secure(server, other)) == "OK"


@needs_openssl
def test_clients_must_show_a_certificate_of_the_authority(
    authority: Authority, bundle: Path, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server", "mtls-server")
    stranger = Authority(tmp_path / "stranger").issue("client", "client")
    with Background(
        settings(
            bundle,
            tls_cert=str(certificate),
            tls_key=str(key),
            tls_client_ca=str(authority.certificate),
        )
    ) as server:
        assert infer_code(secure(server, authority, authority.issue("client", "client"))) == "OK"
        assert infer_code(secure(server, authority)) == "UNAVAILABLE"
        assert infer_code(secure(server, authority, stranger)) == "UNAVAILABLE"


def test_broken_certificates_are_named(bundle: Path, tmp_path: Path) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text("none")
    with pytest.raises(UsageError, match="not a matching certificate"):
        Background(settings(bundle, tls_cert=str(tmp_path / "cert"), tls_key=str(tmp_path / "key")))
