"""`edgeserve run` with keys, limits and a control port, as a process: what it prints and what it never does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bundles import linear_bundle
from tests.cli.test_run import run, serving
from tests.serve.conftest import RawClient, infer_body, post

INFER, CONTROL = "5f3c0a9e77b1442d8e21", "9a71d0c2b4e64f0f93aa"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    linear_bundle(folder)
    (folder / "keys").write_text(f"infer {INFER}\ncontrol {CONTROL}\n")
    return folder


def ask(url: str, request: bytes) -> int:
    with RawClient(url) as client:
        client.send(request)
        return client.response()[0]


def test_keys_a_control_port_and_limits_from_a_file(folder: Path) -> None:
    (folder / "serve.toml").write_text(
        'bundle = "linear.edge"\nkeys = "keys"\nhttp_port = 0\ncontrol_port = 0\nmodel_control = true\n'
        "[limits]\nbody_bytes = 2000\nheaders = 6\n"
    )
    with serving("--config", "serve.toml", cwd=folder) as process:
        found = re.search(r"control plane at (http://\S+)", process.printed)
        assert found
        path, body = "/v2/models/linear/infer", infer_body([[1, 2, 3, 4]])
        with_key = f"X-Api-Key: {INFER}"
        assert ask(process.url, post(body, path)) == 401
        assert ask(process.url, post(body, path, with_key)) == 200
        assert ask(process.url, post(body + b" " * 2000, path, with_key)) == 413
        assert ask(process.url, post(body, path, with_key, *["X: y"] * 9)) == 431
        load = "/v2/repository/models/linear/load"
        for url, key, status in (
            (process.url, CONTROL, 403), (found[1], CONTROL, 200), (found[1], INFER, 403),
        ):  # fmt: skip
            assert ask(url, post(b"", load, f"Authorization: Bearer {key}").replace(
                b"Host: test", b"Host: localhost")) == status  # fmt: skip
        assert process.stop() == 0
    assert INFER not in process.printed
    assert CONTROL not in process.printed


def test_an_open_address_without_keys_is_warned_about(folder: Path) -> None:
    with serving("linear.edge", "--http-port", "0", "--host", "0.0.0.0", "--insecure",
                 cwd=folder) as process:  # fmt: skip
        assert process.stop() == 0
    assert "no keys are configured" in process.printed
    with serving("linear.edge", "--http-port", "0", "--host", "0.0.0.0", "--keys", "keys",
                 cwd=folder) as process:  # fmt: skip
        assert process.stop() == 0
    assert "keys travel in the clear" in process.printed


@pytest.mark.slow
def test_a_control_plane_that_others_reach_is_refused_without_a_key(folder: Path) -> None:
    (folder / "infer-only").write_text(f"infer {INFER}\n")
    for flags in (("--insecure",), ("--keys", "infer-only")):
        done = run("linear.edge", "--host", "0.0.0.0", "--model-control", *flags, cwd=folder)
        assert done.returncode == 2
        assert "needs a key" in done.stderr
        assert INFER not in done.stderr
