"""Keys and TLS as the client meets them, over both protocols."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeserve.cli.main import main
from edgeserve.client import Access, Question, connect
from edgeserve.errors import EnvironmentProblem, UsageError
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear
from tests.serve.access.test_tls import Authority
from tests.serve.background import Background

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the keys")
KEY = "0123456789abcdef0123456789abcdef"
X = np.float32([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def own(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("client", "client")


@pytest.fixture(scope="module")
def urls(
    bundle: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A server that wants a key and a certificate."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"infer {KEY}\n")
    keys.chmod(0o600)
    certificate, key = authority.issue("localhost", "server")
    settings = Settings(
        bundle=str(bundle), http_port=0, grpc_port=0, keys=str(keys), tls_cert=str(certificate),
        tls_key=str(key), tls_client_ca=str(authority.certificate),
    )  # fmt: skip
    with Background(settings) as server:
        yield {"https": server.url, "grpcs": f"grpcs://{server.started.grpc}"}


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_with_key_and_certificate_it_is_let_in(
    urls: dict[str, str], scheme: str, authority: Authority, own: tuple[Path, Path]
) -> None:
    access = Access(10, KEY, authority.certificate, *own)
    with connect(urls[scheme], access) as client:
        got = client.infer("linear", Question({"x": X}))
        assert client.ready()
        assert [m.name for m in client.models()] == ["linear"]
    np.testing.assert_allclose(got.outputs["y"], linear(X), rtol=1e-5)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
@pytest.mark.parametrize("key", [None, "f" * 32])
def test_without_the_key_it_is_told_so(
    urls: dict[str, str], scheme: str, authority: Authority, own: tuple[Path, Path], key: str | None
) -> None:
    access = Access(10, key, authority.certificate, *own)
    with connect(urls[scheme], access) as client, pytest.raises(UsageError, match="requires a key"):
        client.infer("linear", Question({"x": X}))


def test_an_authority_that_nobody_trusts(urls: dict[str, str], own: tuple[Path, Path]) -> None:
    access = Access(10, KEY, None, *own)
    with (
        connect(urls["https"], access) as client,
        pytest.raises(EnvironmentProblem, match="is not trusted") as caught,
    ):
        client.ready()
    assert "--ca" in str(caught.value.hint)
    with (
        connect(urls["grpcs"], access) as client,
        pytest.raises(EnvironmentProblem, match=r"the connection to .* failed"),
    ):
        client.ready()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_client_without_a_certificate(
    urls: dict[str, str], scheme: str, authority: Authority
) -> None:
    with (
        connect(urls[scheme], Access(10, KEY, authority.certificate)) as client,
        pytest.raises(EnvironmentProblem, match=r"the connection to .* failed|TLS handshake"),
    ):
        client.ready()


def test_plain_http_to_a_tls_port(urls: dict[str, str]) -> None:
    with (
        connect(urls["https"].replace("https", "http"), Access(5, KEY)) as client,
        pytest.raises(EnvironmentProblem, match=r"the connection to .* failed"),
    ):
        client.ready()


def test_the_command_line_takes_all_of_it(
    urls: dict[str, str],
    authority: Authority,
    own: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    flags = ["--ca", str(authority.certificate), "--cert", str(own[0]), "--cert-key", str(own[1])]
    for url in urls.values():
        with pytest.raises(SystemExit) as ended:
            main(["status", url, *flags, "--key-env", "MY_KEY"])
        assert ended.value.code == 0
        with pytest.raises(SystemExit) as ended:
            main(["status", url, *flags])
        assert ended.value.code == 2
        assert KEY not in "".join(capsys.readouterr())
