"""Where limits come from, and which place wins."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import UsageError
from edgeserve.gate.config import Config, load_config, read_table
from edgeserve.gate.limits import BUDGETS

KEYS = (*BUDGETS, "device", "against")


def values(config: Config) -> dict[str, float]:
    return {limit.budget.key: limit.value for limit in config.limits}


def places(config: Config) -> dict[str, str]:
    return {limit.budget.key: limit.where for limit in config.limits}


def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "edgeserve.toml").write_text(
        '[gate]\nmax_size = "5 MB"\nmax_latency_p50 = 3\nmin_cosine = 0.9\ndevice = "cpu"\n'
    )
    config = load_config(
        "digits",
        folder=tmp_path,
        flags={"max_size": "1 MB", "max_latency_p50": None},
        environ={
            "EDGESERVE_GATE_MAX_SIZE": "2 MB",
            "EDGESERVE_GATE_MAX_LATENCY_P50": "2",
            "HOME": "/",
        },
    )
    assert values(config) == {"max_size": 1e6, "max_latency_p50": 2, "min_cosine": 0.9}
    assert places(config) == {
        "max_size": "--max-size",
        "max_latency_p50": "EDGESERVE_GATE_MAX_LATENCY_P50",
        "min_cosine": "edgeserve.toml [gate] min_cosine",
    }
    assert config.device == "cpu"
    assert config.file == tmp_path / "edgeserve.toml"


def test_pyproject_counts_where_edgeserve_toml_has_no_gate(tmp_path: Path) -> None:
    (tmp_path / "edgeserve.toml").write_text("[run]\nport = 1\n")
    (tmp_path / "pyproject.toml").write_text("[tool.edgeserve.gate]\nmax_size = 100\n")
    config = load_config("digits", folder=tmp_path)
    assert places(config) == {"max_size": "pyproject.toml [tool.edgeserve.gate] max_size"}


def test_edgeserve_toml_wins_over_pyproject(tmp_path: Path) -> None:
    (tmp_path / "edgeserve.toml").write_text("[gate]\nmax_size = 1\n")
    (tmp_path / "pyproject.toml").write_text(
        "[tool.edgeserve.gate]\nmax_size = 2\nmin_cosine = 0\n"
    )
    assert values(load_config("digits", folder=tmp_path)) == {"max_size": 1}


def test_a_model_s_own_table_wins(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(
        "[gate]\nmax_size = 1\nmin_cosine = 0.5\n[gate.models.digits]\nmax_size = 2\n"
        "[gate.models.other]\nmax_size = 3\n"
    )
    config = load_config("digits", folder=tmp_path, file=file)
    assert values(config) == {"max_size": 2, "min_cosine": 0.5}
    assert places(config)["max_size"] == "limits.toml [gate.models.digits] max_size"
    assert values(load_config("third", folder=tmp_path, file=file))["max_size"] == 1


def test_the_source_is_sought_beside_the_file_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "ci"
    folder.mkdir()
    (folder / "limits.toml").write_text('[gate]\nmin_speedup = 2\nagainst = "../model.onnx"\n')
    config = load_config("digits", folder=tmp_path, file=folder / "limits.toml")
    assert config.against == folder / "../model.onnx"
    flags = {"against": "here.onnx"}
    config = load_config("digits", folder=Path(), file=folder / "limits.toml", flags=flags)
    assert config.against == Path("here.onnx")


@pytest.mark.parametrize(
    ("text", "cause", "hint"),
    [
        ("[gate]\nmax_sise = 1", "Object contains unknown field `max_sise`", "did you mean 'max_size'?"),
        ("[gate]\nxyz = 1", "Object contains unknown field `xyz`", f"known: {', '.join(KEYS)}"),
        (
            "[gate.models.m]\nmin_cosin = 1",
            "Object contains unknown field `min_cosin` - at `$.models[...]`",
            "did you mean 'min_cosine'?",
        ),
        ("[gate]\nmax_size = [1]", "Expected `int | float | str | null`, got `array` - at `$.max_size`", None),
        ("gate = 1", "Expected `object`, got `int`", None),
    ],
)  # fmt: skip
def test_a_wrong_table_is_explained(
    tmp_path: Path, text: str, cause: str, hint: str | None
) -> None:
    (tmp_path / "edgeserve.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config("digits", folder=tmp_path)
    assert caught.value.message == "edgeserve.toml [gate] is wrong"
    assert (caught.value.cause, caught.value.hint) == (cause, hint)


def test_a_wrong_limit_names_its_key_and_file(tmp_path: Path) -> None:
    (tmp_path / "edgeserve.toml").write_text('[gate]\nmax_size = "5 apples"\n')
    with pytest.raises(UsageError) as caught:
        load_config("digits", folder=tmp_path)
    assert caught.value.message == (
        "edgeserve.toml [gate] max_size: '5 apples' is not a valid limit for max_size"
    )


def test_no_limit_at_all_is_an_error_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("digits", folder=tmp_path)
    assert caught.value.cause == "no edgeserve.toml or pyproject.toml here has a gate table"
    assert "[gate] max_size" in (caught.value.hint or "")
    (tmp_path / "edgeserve.toml").write_text('[gate]\nagainst = "digits.onnx"\n')
    with pytest.raises(UsageError, match=r"no limits are set: .*edgeserve.toml sets none"):
        load_config("digits", folder=tmp_path)


def test_a_device_alone_is_a_requirement(tmp_path: Path) -> None:
    (tmp_path / "edgeserve.toml").write_text('[gate]\ndevice = "npu"\n')
    config = load_config("digits", folder=tmp_path)
    assert (config.device, config.limits) == ("npu", ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no.toml cannot be read: No such file or directory"),
        (b"[gate", "no.toml is not TOML"),
        (b"\xff\xfe", "no.toml is not TOML"),
        (b"[run]\n", "no.toml has no gate table"),
    ],
)
def test_a_file_asked_for_must_hold_a_gate(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "no.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_config("digits", folder=tmp_path, file=file, flags={"max_size": "1"})
    assert message in str(caught.value)


def test_an_unknown_variable_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("digits", folder=tmp_path, environ={"EDGESERVE_GATE_MAX_SICE": "1"})
    assert caught.value.message == "EDGESERVE_GATE_MAX_SICE sets no limit"
    assert caught.value.hint == "did you mean 'max_size'?"


toml_lines = st.sampled_from(
    ["[gate]", "[tool.edgeserve.gate]", "[gate.models.m]", "max_size = 1", 'device = "cpu"',
     "gate = 3", "tool = 1", "[tool]", "edgeserve = 2", "max_size = {}", "models = []"]
)  # fmt: skip


@given(st.binary(max_size=100) | st.lists(toml_lines).map(lambda lines: "\n".join(lines).encode()))
def test_any_file_is_a_table_none_or_a_usage_error(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        found = read_table(data, "some.toml")
        assert found is None or found[0] in ("gate", "tool.edgeserve.gate")
