"""Which protocols a server speaks, and what clouds expect, from settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeserve.errors import UsageError
from edgeserve.serve.settings.protocols import PROTOCOLS, protocols_of
from edgeserve.serve.settings.reading import settings_from


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ("v2",)),
        ("", ("v2",)),
        ("torchserve", ("v2", "torchserve")),
        ("torchserve, tfserving", ("v2", "torchserve", "tfserving")),
        (("sagemaker", "v2,vertex"), ("v2", "sagemaker", "vertex")),
        ("all", PROTOCOLS),
        ("sagemaker,all", ("v2", "sagemaker", "tfserving", "torchserve", "vertex", "azureml")),
    ],
)
def test_names_come_in_a_list_or_with_commas(
    given: str | tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert protocols_of(given) == expected


def test_an_unknown_protocol_is_refused_with_a_neighbour() -> None:
    with pytest.raises(UsageError, match="'torchserv' is not a protocol") as error:
        settings_from({"bundle": "x.edge", "protocols": "torchserv"})
    assert "torchserve" in str(error.value.hint)


@pytest.mark.parametrize(
    ("cloud", "environ", "port"),
    [
        ("sagemaker", {}, 8080),
        ("sagemaker", {"SAGEMAKER_BIND_TO_PORT": "9000"}, 9000),
        ("vertex", {"AIP_HTTP_PORT": "7080"}, 7080),
        ("azureml", {"AZUREML_MODEL_DIR": "/models"}, 5001),
    ],
)
def test_a_cloud_sets_what_is_not_set(
    cloud: str, environ: dict[str, str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = settings_from({"bundle": "x.edge", "cloud": cloud})
    assert (settings.http_port, settings.host) == (port, "0.0.0.0")
    assert protocols_of(settings.protocols) == ("v2", cloud)
    assert settings.given == ("x.edge",)
    own = settings_from({"bundle": "x.edge", "cloud": cloud, "http_port": 1, "protocols": "all"})
    assert (own.http_port, protocols_of(own.protocols)) == (1, PROTOCOLS)


@pytest.mark.parametrize("port", ["http", "0", "65536", "²"])
def test_a_port_that_a_cloud_gives_is_checked(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HTTP_PORT", port)
    with pytest.raises(UsageError, match=f"AIP_HTTP_PORT '{port}' is not a valid port"):
        settings_from({"bundle": "x.edge", "cloud": "vertex"})


@pytest.mark.parametrize("values", [{"cloud": "aws"}, {"cloud": 3}])
def test_an_unknown_cloud_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        settings_from({"bundle": str(tmp_path), **values})
