"""TF Serving's configuration files: which models they serve, what is refused, what has no effect."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from edgeserve.errors import UsageError
from edgeserve.serve.models.sources import find_sources
from edgeserve.serve.settings.reading import SettingsSource, settings_from
from edgeserve.serve.settings.tfserving import TfModel, read_batching, read_models
from edgeserve.serve.settings.versions import All, Latest, Specific, VersionPolicy
from tests.serve.repositories import shifted_bundle

CONFIG = """
model_config_list {
  config {
    name: 'half'
    base_path: '/models/half'
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 42 versions: 43 } }
    version_labels { key: 'stable' value: 42 }
  }
  config: { name: "latest", base_path: "near", model_version_policy: { latest: { num_versions: 2 } } }
  config { name: "every" base_path: "/models/every" model_version_policy { all {} } }
  config { name: "plain" base_path: "/models/plain" model_type: TENSORFLOW }
}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "models.config"
    file.write_text(text)
    return file


def test_the_models_of_a_config_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert read_models(written(tmp_path, CONFIG)) == (
        TfModel("half", Path("/models/half"), VersionPolicy(specific=Specific((42, 43)))),
        TfModel("latest", tmp_path / "near", VersionPolicy(latest=Latest(2))),
        TfModel("every", Path("/models/every"), VersionPolicy(all=All())),
        TfModel("plain", Path("/models/plain")),
    )
    assert "'half': without effect: version_labels" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected model_config_list"),
        ("model_config_list", "line 1"),
        ("model_config_list: 3", "expected a message"),
        ("custom_model_config {}", "custom_model_config is not supported"),
        ("model_config_list { config { name: 'a' } }", "a name and a base_path"),
        ("model_config_list { config: 3 }", "config[0]: expected a message"),
        ("model_config_list { config { name: '../a' base_path: '/x' } }", "cannot be a model's name"),
        ("model_config_list { config { name: 'a' base_path: 's3://b/a' } }", "is not on this machine"),
        ("model_config_list { config { name: 'a' base_path: '/x' } config { name: 'a' base_path: '/y' } }", "two models"),
        ("model_config_list { config { name: 'a' base_path: '/x' model_version_policy { latest { num_versions: 0 } } } }", "num_versions"),
        ("model_config_list { config { name: 'a' base_path: '/x' model_version_policy: 3 } }", "model_version_policy"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError, match="cannot be used") as error:
        read_models(file)
    assert words in str(error.value.cause)
    assert str(file) in str(error.value)


def test_its_folders_hold_versions(tmp_path: Path) -> None:
    edge = shifted_bundle(tmp_path, "a", 1)
    for number in (1, 2, 1602624873):
        shutil.copytree(edge, tmp_path / "near" / str(number) / "a.edge")
    (tmp_path / "saved" / "1").mkdir(parents=True)
    (tmp_path / "saved" / "1" / "saved_model.pb").touch()
    text = """model_config_list {
        config { name: "near" base_path: "near" model_version_policy { latest { num_versions: 2 } } }
        config { name: "saved" base_path: "saved" }
        config { name: "gone" base_path: "gone" }
    }"""
    settings = settings_from({"tf_model_config": str(written(tmp_path, text))})
    found = {f"{s.name}/{s.version}": s.problem for s in find_sources(settings)}
    assert found.keys() == {"near/2", "near/1602624873", "saved/1", "gone/1"}
    assert found["near/2"] is None
    assert "edgeserve convert" in str(found["saved/1"])
    assert "is not a folder" in str(found["gone/1"])
    tables = {"tf_model_config": settings.tf_model_config, "model": [{"name": "near", "queue": 3}]}
    assert [s.settings.queue for s in find_sources(settings_from(tables))][:2] == [3, 3]
    with pytest.raises(UsageError, match="cannot be read"):
        find_sources(settings_from({"tf_model_config": str(tmp_path / "absent")}))


def test_a_settings_file_names_it_relative_to_itself(tmp_path: Path) -> None:
    toml = tmp_path / "serve.toml"
    toml.write_text('tf_model_config = "models.config"\n')
    assert SettingsSource(str(toml), {}).read().tf_model_config == str(tmp_path / "models.config")


def test_batching_parameters_are_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 128 }\nbatch_timeout_micros { value: 2000 }\n"
        "num_batch_threads { value: 4 }\nmax_enqueued_batches { value: 100 }\n"
        "allowed_batch_sizes: 4 allowed_batch_sizes: 128\n"
    )
    expected = {"max_batch": 128, "batch_delay": 0.002, "instances": 4, "preferred_batches": (4, 128)}  # fmt: skip
    assert read_batching(file) == expected
    assert "without effect: max_enqueued_batches" in caplog.text
    values = {"bundle": "a.edge", "tf_batching": str(file), "max_batch": 8}
    settings = settings_from(values)
    assert (settings.max_batch, settings.batch_delay, settings.instances) == (8, 0.002, 4)
    file.write_text("max_batch_size: 128")
    with pytest.raises(UsageError, match="cannot be used") as error:
        settings_from(values)
    assert "max_batch_size: expected a message" in str(error.value.cause)
