"""TLS: served, required of clients where asked for, followed when it is renewed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from edgeserve.errors import UsageError
from edgeserve.serve.access.tls import Tls
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Response
from edgeserve.serve.http.server import HttpServer
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the keys")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority of a test's own, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.certificate, self.key = folder / "ca.pem", folder / "ca.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", self.key, "-out", self.certificate, "-days", "2", "-subj", "/CN=test-ca",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip

    def issue(self, name: str, files: str) -> tuple[Path, Path]:
        """A certificate for `name` and 127.0.0.1, and its key."""
        certificate, key = self.folder / f"{files}.pem", self.folder / f"{files}.key"
        request, extensions = self.folder / "request", self.folder / "extensions"
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                key, "-out", request, "-subj", f"/CN={name}")  # fmt: skip
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key,
                "-CAcreateserial", "-out", certificate, "-days", "2", "-extfile", extensions)  # fmt: skip
        return certificate, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class TlsClient(RawClient):
    """A RawClient inside TLS."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        super().__init__(url.replace("https://", "http://"))
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


def client_context(authority: Authority, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own is not None:
        context.load_cert_chain(*own)
    return context


def subject(client: TlsClient) -> str:
    assert isinstance(client.socket, ssl.SSLSocket)
    certificate = client.socket.getpeercert()
    assert certificate is not None
    return str(dict(pair[0] for pair in certificate["subject"])["commonName"])  # type: ignore[misc]


def test_requests_small_and_large_and_a_renewed_certificate(
    bundle: Path, authority: Authority
) -> None:
    certificate, key = authority.issue("first", "server")
    settings = Settings(
        bundle=str(bundle), http_port=0, tls_cert=str(certificate), tls_key=str(key),
        limits=Limits(handshake_s=1.0),
    )  # fmt: skip
    context = client_context(authority)
    with Background(settings) as server:
        assert server.url.startswith("https://")
        with TlsClient(server.url, context) as client:
            assert subject(client) == "first"
            padding = " " * 300_000
            for body in (infer_body([[1, 2, 3, 4]]), infer_body([[1, 2, 3, 4]]) + padding.encode()):
                client.send(post(body))
                assert client.response()[0] == 200
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert client.response()[0] == 400

        triton_client = triton.InferenceServerClient(
            server.url.removeprefix("https://"), ssl=True, ssl_context_factory=lambda: context
        )
        x = np.float32([[1, 2, 3, 4]])
        given = triton.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x)
        np.testing.assert_allclose(
            triton_client.infer("linear", [given]).as_numpy("y"), linear(x), rtol=1e-5
        )
        triton_client.close()

        with RawClient(server.url.replace("https", "http")) as plain:
            plain.send(b"GET /v2 HTTP/1.1\r\nHost: t\r\n\r\n")
            assert plain.is_closed()
        with RawClient(server.url.replace("https", "http")) as silent:
            assert silent.is_closed()  # after handshake_s

        authority.issue("second", "server")
        for _ in range(100):
            with TlsClient(server.url, context) as client:
                if subject(client) == "second":
                    break
            time.sleep(0.1)
        else:
            pytest.fail("the renewed certificate was not used")


def test_clients_must_show_a_certificate_of_the_authority(
    bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server", "mutual")
    stranger = Authority(tmp_path / "other").issue("stranger", "client")
    settings = Settings(
        bundle=str(bundle), http_port=0, tls_cert=str(certificate), tls_key=str(key),
        tls_client_ca=str(authority.certificate),
    )  # fmt: skip
    with Background(settings) as server:
        context = client_context(authority, authority.issue("friend", "client"))
        with TlsClient(server.url, context) as client:
            client.send(post(infer_body([[1, 2, 3, 4]])))
            assert client.response()[0] == 200
        for own in (None, stranger):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(server.url, client_context(authority, own))


def ask(url: str, context: ssl.SSLContext) -> None:
    with TlsClient(url, context) as client:
        client.send(post(infer_body([[1, 2, 3, 4]])))
        client.response()


def test_broken_files_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("server", "broken")
    other = authority.issue("other", "other")[1]
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate")
    encrypted = tmp_path / "encrypted.key"
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    for pair in ((certificate, other), (nothing, key), (tmp_path / "none", key)):
        with pytest.raises(UsageError, match="not a matching certificate and key"):
            Tls(str(pair[0]), str(pair[1]))
    with pytest.raises(UsageError, match="encrypted"):
        Tls(str(certificate), str(encrypted))
    with pytest.raises(UsageError, match="holds no certificates"):
        Tls(str(certificate), str(key), str(nothing))


def test_a_renewal_that_does_not_fit_keeps_the_old_one(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = authority.issue("server", "renewed")
    tls = Tls(str(certificate), str(key))
    key.write_text("half a ke")
    tls.refresh()
    tls.refresh()
    assert caplog.text.count("is not used") == 1
    assert tls.pem()[0] == certificate.read_bytes()


class Holder:
    """Takes every request, and leaves it at that."""

    def __init__(self, held: list[Request]) -> None:
        self.handle = held.append

    def announced(self, head: Head) -> None:
        pass

    def admit(self, head: Head, address: str) -> None:
        head.route, head.most = self, 1 << 20


@pytest.mark.parametrize("adopted", [False, True])
def test_a_handshake_that_ends_while_the_server_drains_holds_nobody_up(
    authority: Authority, *, adopted: bool
) -> None:
    certificate, key = authority.issue("localhost", "draining")

    async def story() -> None:
        tls = Tls(str(certificate), str(key))
        held: list[Request] = []
        server = HttpServer(Holder(held), Limits(), Recorder(), tls)
        host, port = await server.listen("127.0.0.1", 0)
        context = client_context(authority)
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        while not held:  # noqa: ASYNC110 - the server's handler sets it
            await asyncio.sleep(0.01)
        if adopted:
            late, theirs = socket.socketpair()
            server.adopt(theirs)
        else:
            late = socket.create_connection((host, port))
            await asyncio.sleep(0.1)
        late.setblocking(False)
        drained = asyncio.ensure_future(server.drain(60))
        await asyncio.sleep(0.1)
        _, other = await asyncio.open_connection(
            sock=late, ssl=context, server_hostname="localhost"
        )
        held[0].respond(Response.json({}))
        assert await asyncio.wait_for(drained, 30)
        await server.close()
        for one in (writer, other):
            one.close()
            with contextlib.suppress(OSError):  # the server has closed it
                await one.wait_closed()

    asyncio.run(story())
