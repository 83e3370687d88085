"""Who may do what: keys, roles, the control plane; over real sockets where sockets matter."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import UsageError
from edgeserve.serve.access.keys import (
    AccessDenied,
    Authoriser,
    Caller,
    Forbidden,
    Keys,
    Role,
    Unauthenticated,
    host_name,
    is_loopback,
    key_of,
    read_keys,
)
from edgeserve.serve.settings.reading import settings_from
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post

INFER, CONTROL = "infer-key-0123456789", "control-key-0123456789"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# whose\ninfer {INFER}\n\n  control\t{CONTROL}\n")
    return file


def test_a_file_and_the_environment_hold_keys(key_file: Path) -> None:
    environment = {"EDGESERVE_API_KEY": "other-key-0123456789"}
    keys = read_keys(str(key_file), environment)
    assert keys.role(INFER) is Role.INFER
    assert keys.role("other-key-0123456789") is Role.INFER
    assert keys.role(CONTROL) is Role.CONTROL
    assert keys.role(INFER[:-1]) is None
    assert keys.role("") is None
    assert not read_keys(None, {})
    assert read_keys(None, {"EDGESERVE_CONTROL_KEY": CONTROL}).role(CONTROL) is Role.CONTROL


def test_keys_are_in_no_text(key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = read_keys(str(key_file), {})
    with caplog.at_level(logging.DEBUG), pytest.raises(AccessDenied) as caught:
        Authoriser(keys, listens_on="127.0.0.1").check(Role.INFER, Caller("wrong-key-0123456789"))
    for text in (repr(keys), str(keys), str(caught.value), caplog.text):
        assert INFER not in text
        assert "wrong-key" not in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("infer", "line 1: expected 'infer KEY' or 'control KEY'"),
        ("admin some-long-key-123456", "line 1: expected"),
        ("infer a b", "line 1: expected"),
        ("infer short", "at least 16 printable"),
        ("infer kéy-kéy-kéy-kéy-kéy", "at least 16 printable"),
        ("# none", "holds no key"),
    ],
)
def test_files_that_hold_no_good_key_are_refused(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(line + "\n")
    with pytest.raises(UsageError, match=words) as caught:
        read_keys(str(file), {})
    assert "short" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(str(tmp_path / "none"), {})


KEYS = read_keys(None, {"EDGESERVE_API_KEY": INFER, "EDGESERVE_CONTROL_KEY": CONTROL})
HOME = Caller(address="127.0.0.1", host="localhost:8000")


@pytest.mark.parametrize(
    ("keys", "role", "caller", "problem"),
    [
        (Keys(), Role.OPEN, Caller(), None),
        (Keys(), Role.INFER, Caller(address="10.0.0.7"), None),
        (KEYS, Role.OPEN, Caller(), None),
        (KEYS, Role.INFER, HOME, Unauthenticated),
        (KEYS, Role.INFER, Caller("wrong"), Unauthenticated),
        (KEYS, Role.INFER, Caller(INFER), None),
        (KEYS, Role.INFER, Caller(CONTROL), None),
        (Keys(), Role.CONTROL, HOME, None),
        (Keys(), Role.CONTROL, Caller(address="127.0.0.1"), None),
        (Keys(), Role.CONTROL, Caller(address="10.0.0.7", host="localhost"), Forbidden),
        (Keys(), Role.CONTROL, Caller(address="127.0.0.1", host="evil.example"), Forbidden),
        (Keys(), Role.CONTROL, Caller(address="127.0.0.1", host="localhost.evil.example"), Forbidden),
        (
            Keys(),
            Role.CONTROL,
            Caller(address="127.0.0.1", host="localhost", origin="http://evil.example"),
            Forbidden,
        ),
        (
            Keys(),
            Role.CONTROL,
            Caller(address="127.0.0.1", host="localhost", origin="null"),
            Forbidden,
        ),
        (
            Keys(),
            Role.CONTROL,
            Caller(address="::1", host="[::1]:8000", origin="http://localhost:3000"),
            None,
        ),
        (KEYS, Role.CONTROL, HOME, Unauthenticated),
        (KEYS, Role.CONTROL, Caller(INFER, "127.0.0.1", "localhost"), Forbidden),
        (KEYS, Role.CONTROL, Caller(CONTROL, "10.0.0.7", "localhost"), None),
        (KEYS, Role.CONTROL, Caller(CONTROL, "10.0.0.7", "evil.example"), Forbidden),
        (KEYS, Role.CONTROL, Caller(CONTROL, "10.0.0.7", "device.lan:8003"), None),
    ],
)  # fmt: skip
def test_the_authoriser(
    keys: Keys, role: Role, caller: Caller, problem: type[AccessDenied] | None
) -> None:
    authoriser = Authoriser(keys, ("device.lan",), listens_on="127.0.0.1")
    if problem is None:
        authoriser.check(role, caller)
    else:
        with pytest.raises(problem):
            authoriser.check(role, caller)
    assert authoriser.allows(role, caller) is (problem is None)


def test_a_listener_without_control_plane_has_none_for_anybody() -> None:
    authoriser = Authoriser(KEYS, listens_on="127.0.0.1", control=False)
    with pytest.raises(Forbidden, match="not on this address"):
        authoriser.check(Role.CONTROL, Caller(CONTROL, "127.0.0.1", "localhost"))


def test_an_open_listener_without_keys_has_no_control_plane() -> None:
    authoriser = Authoriser(Keys(), listens_on="0.0.0.0")
    with pytest.raises(Forbidden):
        authoriser.check(Role.CONTROL, Caller(address="127.0.0.1", host="127.0.0.1"))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a.B:80", "a.b"),
        ("a", "a"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_host_headers(value: str, name: str) -> None:
    assert host_name(value) == name


def test_where_a_key_may_stand() -> None:
    assert key_of("Bearer k", None) == "k"
    assert key_of("bearer  k ", None) == "k"
    assert key_of("Basic k", None) is None
    assert key_of("Basic k", "x") == "x"
    assert key_of(None, None) is None


def test_mapped_addresses_are_loopback_too() -> None:
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")


@given(st.text(), st.text())
def test_any_host_and_origin_decide(host: str, origin: str) -> None:
    caller = Caller(address="127.0.0.1", host=host, origin=origin)
    allowed = Authoriser(Keys(), listens_on="127.0.0.1").allows(Role.CONTROL, caller)
    assert not allowed or host_name(host) in ("localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"host": "0.0.0.0"}, "nothing protects"),
        ({"host": "0.0.0.0", "insecure": True, "model_control": True}, "needs a key"),
        ({"host": "0.0.0.0", "insecure": True, "shared_memory": "edge-"}, "needs a key"),
        ({"control_port": 0, "control_host": "0.0.0.0"}, "needs a key"),
        ({"control_host": "127.0.0.1"}, "control_host needs control_port"),
        ({"tls_cert": "a"}, "must be set together"),
        ({"tls_client_ca": "a"}, "needs tls_cert"),
        ({"keys": "/nowhere"}, "cannot be read"),
        ({"limits": {"headers": 0}}, "limits.headers 0 is not a valid number"),
        ({"limits": {"head_s": float("nan")}}, "limits.head_s"),
        ({"limits": {"nothing": 1}}, "cannot be used"),
    ],
)
def test_settings_that_leave_a_door_open_are_refused(
    values: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGESERVE_API_KEY", raising=False)
    monkeypatch.delenv("EDGESERVE_CONTROL_KEY", raising=False)
    with pytest.raises(UsageError, match=words):
        settings_from({"bundle": "m.edge", **values})


def test_a_key_opens_other_addresses(key_file: Path) -> None:
    settings_from({"bundle": "m", "host": "0.0.0.0", "keys": str(key_file)})
    settings_from({"bundle": "m", "host": "::", "keys": str(key_file), "model_control": True})
    settings_from({"bundle": "m", "host": "::", "insecure": True, "model_control": True,
                   "control_port": 0})  # fmt: skip


def ask(url: str, path: str, *headers: str, method: str = "GET") -> int:
    lines = "".join(f"{h}\r\n" for h in ("Host: localhost", *headers))
    with RawClient(url) as client:
        client.send(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode())
        return client.response()[0]


ROUTES = (
    "/v2", "/v2/models", "/v2/models/linear", "/v2/models/linear/config", "/v2/models/linear/ready",
    "/v2/models/linear/infer", "/metrics", "/nothing", "/v2/models/none",
)  # fmt: skip


def test_with_keys_only_health_is_open(bundle: Path, key_file: Path) -> None:
    settings = Settings(bundle=str(bundle), http_port=0, keys=str(key_file))
    with Background(settings) as server:
        assert ask(server.url, "/v2/health/live") == 200
        for path in ROUTES:
            assert ask(server.url, path) == 401
            assert ask(server.url, path, "X-Api-Key: wrong") == 401
            assert ask(server.url, path, f"Authorization: Basic {INFER}") == 401
            assert ask(server.url, path, f"X-Api-Key: {INFER}") != 401
        with RawClient(server.url) as client:
            client.send(b"GET /v2/health/ready HTTP/1.1\r\nHost: t\r\n\r\n")
            assert b"models" not in client.response()[2]
            client.send(b"GET /v2 HTTP/1.1\r\nHost: t\r\n\r\n")
            assert client.response()[1]["www-authenticate"].startswith("Bearer")
            path, body = "/v2/models/linear/infer", infer_body([[1, 2, 3, 4]])
            for header, status in (
                (f"Authorization: Bearer {INFER}", 200),
                (f"Authorization: Bearer {INFER}", 200),
                (f"Authorization: Bearer {INFER[:-1]}x", 401),
                (f"X-Api-Key: {CONTROL}", 200),
                ("X: y", 401),
            ):
                client.send(post(body, path, header))
                assert client.response()[0] == status


@pytest.mark.parametrize("extra", [{}, {"control_port": 0}])
def test_keys_without_a_control_key_close_the_control_plane_and_the_start_says_so(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, extra: dict[str, int]
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"infer {INFER}\n")
    settings = Settings(
        bundle=str(bundle), http_port=0, keys=str(file), model_control=True, **extra
    )  # type: ignore[arg-type]
    load = "/v2/repository/models/linear/load"
    with Background(settings) as server:
        url = server.started.control_url or server.url
        assert ask(url, load, "Content-Length: 0", method="POST") == 401
        with RawClient(url) as client:
            client.send(post(b"", load, f"X-Api-Key: {INFER}").replace(b": test", b": localhost"))
            status, _, body = client.response()
        assert (status, b"no control key is configured" in body) == (403, True)
    assert "the control plane is unreachable" in caplog.text
    caplog.clear()
    file.write_text(f"infer {INFER}\ncontrol {CONTROL}\n")
    with Background(settings) as server:
        url = server.started.control_url or server.url
        headers = ("Content-Length: 0", f"X-Api-Key: {CONTROL}")
        assert ask(url, load, *headers, method="POST") == 200
    assert "is unreachable" not in caplog.text
