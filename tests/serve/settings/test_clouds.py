"""What Amazon SageMaker says in the environment of its containers, and the folder that it puts the model into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeserve.errors import UsageError
from edgeserve.serve.models.sources import find_sources
from edgeserve.serve.settings.clouds import PRESETS, check_folder
from edgeserve.serve.settings.clouds.sagemaker import preset
from edgeserve.serve.settings.reading import settings_from
from tests.bundles import linear_bundle

OURS = {"host": "0.0.0.0", "insecure": True, "protocols": ("sagemaker",)}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"http_port": 8080, "bundle": "/opt/ml/model"}),
        ({"SAGEMAKER_BIND_TO_PORT": "21001", "SAGEMAKER_SAFE_PORT_RANGE": "21000-21999"}, {"http_port": 21001}),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"}, {"max_body": 6 << 20}),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "4", "SAGEMAKER_MODEL_SERVER_TIMEOUT": "9"}, {"timeout": 4.0}),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "9"}, {"timeout": 9.0}),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "3"}, {"instances": 3}),
        ({"SAGEMAKER_MULTI_MODEL": "true"}, {"bundle": None, "repository": "/opt/ml/models", "load": (), "model_control": True}),
        ({"SAGEMAKER_MULTI_MODEL": "false"}, {"bundle": "/opt/ml/model"}),
        ({"SAGEMAKER_BIND_TO_PORT": ""}, {"http_port": 8080}),
    ],
)  # fmt: skip
def test_variables_become_settings(environ: dict[str, str], expected: dict[str, Any]) -> None:
    found = preset(environ)
    wanted = {"http_port": 8080, "bundle": "/opt/ml/model"} | OURS | expected
    assert found == {name: value for name, value in wanted.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "http", "is not a valid port"),
        ("SAGEMAKER_SAFE_PORT_RANGE", "21000", "is not a range"),
        ("SAGEMAKER_SAFE_PORT_RANGE", "21000-21999", "port 8080 is not in"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "0", "is not valid"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "-1", "is not valid"),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "9" * 40, "is not valid"),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/html", "is not a media type"),
    ],
)
def test_variables_that_cannot_be_used_are_named(name: str, value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        preset({name: value})
    assert name in str(error.value)


def test_the_control_plane_of_several_models_needs_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEMAKER_MULTI_MODEL", "true")
    values = {"cloud": "sagemaker", "bundle": str(tmp_path)}
    with pytest.raises(UsageError, match=r"control plane on 0\.0\.0\.0 needs a key"):
        settings_from(values)
    monkeypatch.setenv("EDGESERVE_CONTROL_KEY", "control-key-0123456789")
    settings = settings_from(values)
    assert (settings.load, settings.model_control) == ((), True)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as error:
        check_folder("sagemaker", tmp_path / "model")
    assert "NAME.edge" in str(error.value)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="is not a folder"):
        check_folder("azureml", file)


def test_a_folder_without_a_bundle_is_named_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        check_folder("sagemaker", tmp_path)
    (tmp_path / "model.pth").touch()
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(UsageError, match=r"holds no bundle, only model\.pth"):
        check_folder("sagemaker", tmp_path)


@pytest.mark.parametrize("place", [".", "x.edge", "m/1"])
def test_a_bundle_may_be_the_folder_or_in_it_or_in_a_repository(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    destination = folder / place
    destination.parent.mkdir(parents=True, exist_ok=True)
    linear_bundle(tmp_path).rename(destination)
    check_folder("sagemaker", folder)
    (source,) = find_sources(settings_from({"bundle": str(folder)}))
    assert (source.problem, Path(source.path)) == (None, destination)


@pytest.mark.parametrize("cloud", [c for c in PRESETS if "bundle" in PRESETS[c]({})])
def test_a_cloud_without_its_folder_does_not_start(
    cloud: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PRESETS, cloud, lambda environ: {"bundle": str(tmp_path / "none")})
    with pytest.raises(UsageError, match="no model to serve"):
        settings_from({"cloud": cloud})
    assert settings_from({"cloud": cloud, "bundle": "x.edge"}).given == ("x.edge",)
