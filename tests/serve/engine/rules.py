"""Engine settings for tests: the declared defaults, one instance, and what a test says otherwise."""

from __future__ import annotations

from typing import Any

from edgeserve.serve.engine import EngineSettings, LevelSettings
from edgeserve.serve.settings.model import PerLevel, PerModel
from edgeserve.serve.settings.setting import taken


def engine_settings(**own: Any) -> EngineSettings:
    return taken(EngineSettings, PerModel(), **({"instances": 1, "levels": {}} | own))


def level_settings(**own: Any) -> LevelSettings:
    return taken(LevelSettings, PerLevel(), **({"queue": None} | own))
