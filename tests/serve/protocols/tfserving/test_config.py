"""A server that is started with TF Serving's configuration files."""

from __future__ import annotations

from pathlib import Path

from edgeserve.serve.settings.reading import SettingsSource
from tests.serve.background import Background
from tests.serve.protocols.asking import ask
from tests.serve.protocols.tfserving.models import half
from tests.waiting import wait_for


def test_models_and_versions_follow_the_config_file(tmp_path: Path) -> None:
    half(tmp_path, 1, 2.0)
    half(tmp_path, 2, 3.0)
    config, batching = tmp_path / "models.config", tmp_path / "batching.config"
    entry = f"model_config_list {{ config {{ name: 'mine' base_path: '{tmp_path}/half' %s }} }}"
    config.write_text(entry % "model_version_policy { specific { versions: 1 } }")
    batching.write_text("max_batch_size { value: 4096 } batch_timeout_micros { value: 0 }")
    flags = {"tf_model_config": str(config), "tf_batching": str(batching), "http_port": 0}
    source = SettingsSource(None, flags)
    body = {"instances": [1.0]}
    with Background(source.read(), source.read) as server:
        assert ask(server, "/v1/models/mine:predict", body).json == {"predictions": [2.5]}
        assert ask(server, "/v1/models/mine/versions/2:predict", body).status == 404
        config.write_text(entry % "model_version_policy { all {} }")
        server.hang_up()
        wait_for(
            lambda: ask(server, "/v1/models/mine:predict", body).json == {"predictions": [3.5]}
        )
        assert ask(server, "/v1/models/mine/versions/1:predict", body).json == {
            "predictions": [2.5]
        }
