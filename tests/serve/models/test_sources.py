"""What is found to serve: bundles, tables, repository folders as people and Triton lay them out, and links."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from edgeserve.bundle import Labels
from edgeserve.errors import UsageError
from edgeserve.serve.models.sources import find_sources
from edgeserve.serve.settings.model import PriorityTable
from edgeserve.serve.settings.pbtxt import config_of
from edgeserve.serve.settings.reading import settings_from
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.textproto import read
from edgeserve.serve.settings.versions import VersionPolicy
from tests.serve.repositories import shifted_bundle, version


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shifted_bundle(tmp_path_factory.mktemp("sources"), "a", 1)


def put(edge: Path, destination: Path) -> Path:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(edge, destination)
    return destination


def found(settings: Settings) -> dict[str, str]:
    return {f"{s.name}/{s.version}": s.problem or "" for s in find_sources(settings)}


def test_layouts(edge: Path, tmp_path: Path) -> None:
    put(edge, tmp_path / "plain.edge")
    put(edge, tmp_path / "folder")
    put(edge, tmp_path / "whole" / "3")
    put(edge, tmp_path / "inner" / "1" / "any.edge")
    put(edge, tmp_path / "inner" / "2" / "any.edge")
    put(edge, tmp_path / ".hidden.edge")
    (tmp_path / "README.md").write_text("not a model")
    (tmp_path / "inner" / "notes").mkdir()
    settings = Settings(bundle=str(tmp_path))
    assert found(settings) == dict.fromkeys(["folder/1", "inner/2", "plain/1", "whole/3"], "")
    everything = settings_from({"repository": str(tmp_path), "versions": "all"})
    assert set(found(everything)) == {"folder/1", "inner/1", "inner/2", "plain/1", "whole/3"}


def test_what_is_wrong_with_one_model_is_told_of_that_one(edge: Path, tmp_path: Path) -> None:
    put(edge, tmp_path / "good.edge")
    put(edge, tmp_path / "bad name.edge")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "1").mkdir(parents=True)
    put(edge, tmp_path / "twice" / "1" / "a.edge")
    put(edge, tmp_path / "twice" / "1" / "b.edge")
    put(edge, tmp_path / "pbtxt" / "1" / "a.edge")
    (tmp_path / "pbtxt" / "config.pbtxt").write_text("max_batch_size: -1")
    put(edge, tmp_path / "other" / "1" / "a.edge")
    (tmp_path / "other" / "config.pbtxt").write_text('name: "another"')
    problems = found(Settings(repository=str(tmp_path)))
    assert problems["good/1"] == ""
    assert "cannot be a model's name" in problems["bad_name/1"]
    assert problems["empty/1"] == "it has no version"
    assert problems["hollow/1"] == "version 1 holds no bundle"
    assert problems["twice/1"] == "version 1 holds 2 bundles"
    assert "max_batch_size: expected 0 or more, got -1" in problems["pbtxt/1"]
    assert problems["other/1"] == "config.pbtxt names 'another', its folder 'other'"


def test_names_have_letters_of_any_alphabet(edge: Path, tmp_path: Path) -> None:
    put(
        edge, tmp_path / unicodedata.normalize("NFD", "modèle.edge")
    )  # as some file systems store it
    put(edge, tmp_path / "模型" / "1" / "a.edge")
    table = {"bundle": str(edge), "name": "größe"}
    settings = settings_from({"repository": str(tmp_path), "model": [table]})
    assert found(settings) == dict.fromkeys(["größe/1", "modèle/1", "模型/1"], "")
    named = settings_from({"bundle": str(edge), "name": "größe"})
    assert found(named) == {"größe/1": ""}


def test_links_lead_nowhere_outside(edge: Path, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "models"
    put(edge, outside / "1" / "a.edge")
    (outside / "labels.txt").write_text("secret")
    folder.mkdir()
    (folder / "whole.edge").symlink_to(outside / "1" / "a.edge")
    (folder / "model").symlink_to(outside)
    (folder / "versions").mkdir()
    (folder / "versions" / "1").symlink_to(outside / "1")
    (folder / "inner" / "1").mkdir(parents=True)
    (folder / "inner" / "1" / "a.edge").symlink_to(outside / "1" / "a.edge")
    put(edge, folder / "labels" / "1" / "a.edge")
    (folder / "labels" / "config.pbtxt").write_text(
        'output [{ name: "y" label_filename: "../../outside/labels.txt" }]'
    )
    put(edge, folder / "config" / "1" / "a.edge")
    (outside / "config.pbtxt").write_text("max_batch_size: 2")
    (folder / "config" / "config.pbtxt").symlink_to(outside / "config.pbtxt")
    problems = found(Settings(repository=str(folder)))
    assert len(problems) == 6
    assert all("leads out of" in problem for problem in problems.values()), problems


def test_triton_s_configuration_is_followed(edge: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        put(edge, tmp_path / "m" / str(number) / "m.edge")
    (tmp_path / "m" / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "m" / "config.pbtxt").write_text(
        """
        name: "m"  # as its folder
        platform: "onnxruntime_onnx"
        max_batch_size: 4
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" } ]
        version_policy: { latest { num_versions: 2 } }
        instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 } ]
        dynamic_batching {
          preferred_batch_size: [ 2, 4 ]
          max_queue_delay_microseconds: 500
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy {
            default_timeout_microseconds: 2000000, allow_timeout_override: true
            max_queue_size: 16
          }
          priority_queue_policy {
            key: 1
            value { max_queue_size: 8 timeout_action: DELAY allow_timeout_override: true }
          }
          priority_queue_policy [ { key: 3 value { default_timeout_microseconds: 1000 } } ]
        }
        optimization { graph { level: 1 } }
        """
    )
    sources = find_sources(Settings(repository=str(tmp_path), queue=99, batch_delay=1.0))
    assert [(s.name, s.version) for s in sources] == [("m", "2"), ("m", "3")]
    assert sources[0].labels == {"y": Labels("labels.txt", ("cat", "dog"))}
    own = sources[0].settings
    assert (own.max_batch, own.preferred_batches, own.batch_delay) == (4, (2, 4), 0.0005)
    assert (own.priority_levels, own.default_priority, own.queue) == (3, 2, 16)
    assert (own.timeout, own.own_timeouts, own.instances, own.batching) == (2.0, True, 3, True)
    assert own.timeout_action == "reject"
    assert own.priority == (
        PriorityTable(1, queue=8, timeout=0.0, own_timeouts=True, timeout_action="delay"),
        PriorityTable(3, timeout=0.001, own_timeouts=False, timeout_action="reject"),
    )


def test_what_a_configuration_says_without_effect_is_known() -> None:
    config = config_of(
        read(
            "input [{ name: 'x' dims: [] reshape { shape: [1] } }] "
            "output { name: 'y' label_filename: 'l' is_shape_tensor: false } "
            "optimization {} dynamic_batching { preserve_ordering: true "
            "default_queue_policy { timeout_action: DELAY fairness: 1 } priority_levels: 1 "
            "priority_queue_policy { key: 1 value { fairness: 2 } } "
            "priority_queue_policy { key: 2 value { max_queue_size: 2 } } }"
        )
    )
    assert config.settings["timeout_action"] == "delay"
    assert config.ignored == (
        "optimization", "dynamic_batching.preserve_ordering", "input[x].reshape",
        "output[y].is_shape_tensor", "default_queue_policy.fairness", "priority_queue_policy[1].fairness", "priority_queue_policy[2]",
    )  # fmt: skip
    assert config_of(read("")).settings == {"batching": False}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("default_queue_policy { timeout_action: 7 }", "timeout_action: expected REJECT or DELAY"),
        ("default_queue_policy { timeout_action {} }", "timeout_action: expected REJECT or DELAY"),
        ("priority_queue_policy: 3", "priority_queue_policy: expected messages, got 3"),
        ("priority_queue_policy { key: 1 value: 2 }", "value: expected a message, got 2"),
    ],
)
def test_queue_policies_that_say_nothing_are_refused(policy: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config_of(read(f"dynamic_batching {{ priority_levels: 2 {policy} }}"))


def test_two_models_of_one_name_are_refused(edge: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two models are called 'a'"):
        find_sources(Settings(bundles=(str(edge), str(edge))))
    tables = settings_from(
        {"model": [{"bundle": str(edge)}, {"bundle": str(edge), "name": "b", "threads": 2}]}
    )
    assert [(s.name, s.settings.threads) for s in find_sources(tables)] == [("a", 0), ("b", 2)]


def test_a_replaced_bundle_does_not_load_as_the_old_one(edge: Path, tmp_path: Path) -> None:
    version(tmp_path / "m", "a", 1, 1)
    settings = Settings(repository=str(tmp_path / "m"))
    (before,) = find_sources(settings)
    assert before.loads_as(find_sources(settings)[0])
    shifted_bundle(tmp_path / "new", "a", 2)
    manifest = tmp_path / "new" / "a.edge" / "manifest.json"
    manifest.replace(Path(before.path) / "manifest.json")
    assert not before.loads_as(find_sources(settings)[0])
    quicker = find_sources(Settings(repository=str(tmp_path / "m"), threads=2))[0]
    assert not find_sources(settings)[0].loads_as(quicker)
    other = find_sources(Settings(repository=str(tmp_path / "m"), drain_timeout=1))[0]
    assert find_sources(settings)[0].loads_as(other)  # that is about the server


@pytest.mark.parametrize(
    ("text", "there", "wanted"),
    [
        ("latest {}", ["1", "10", "9"], ["10"]),
        ("latest { num_versions: 2 }", ["1", "10", "9"], ["9", "10"]),
        ("all {}", ["2", "1"], ["1", "2"]),
        ("specific { versions: [2, 5] }", ["1", "2"], ["2", "5"]),
        ("", ["1"], ["1"]),
    ],
)
def test_version_policies(text: str, there: list[str], wanted: list[str]) -> None:
    policy = config_of(read(f"version_policy {{ {text} }}")).versions
    assert isinstance(policy, VersionPolicy)
    assert policy.chosen(there) == wanted
