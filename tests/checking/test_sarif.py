"""SARIF: the fields that the standard and code scanning require, for findings of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeserve.checking import check, to_sarif
from edgeserve.checking.report import RULES
from edgeserve.targets.schema import all_targets, load_target
from tests.checking.models import inner_unknown, one_node, saved
from tests.networks import small_cnn, with_unknown_op


def sarif_of(file: Path) -> dict[str, Any]:
    report = check(file, all_targets())
    document: dict[str, Any] = json.loads(msgspec.json.encode(to_sarif(report)))
    return document


@pytest.mark.parametrize("name", ["cnn", "unknown", "inner", "old", "dynamic"])
def test_the_document_is_whole(tmp_path: Path, name: str) -> None:
    model = {
        "cnn": small_cnn,
        "unknown": with_unknown_op,
        "inner": inner_unknown,
        "old": lambda: one_node("Relu", opset=6),
        "dynamic": lambda: one_node("Relu", shape=("n", "length", 4)),
    }[name]()
    document = sarif_of(saved(model, tmp_path))
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "edgeserve check"
    rules = [rule["id"] for rule in driver["rules"]]
    assert len(set(rules)) == len(rules)
    assert set(rules) <= set(RULES)
    assert all(rule["shortDescription"]["text"].endswith(".") for rule in driver["rules"])
    assert run["results"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        where = location["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][where["index"]]["location"]["uri"] == where["uri"]
        assert all(place["name"] for place in location.get("logicalLocations", ()))
    prints = [r["partialFingerprints"]["edgeserveFinding/v1"] for r in run["results"]]
    assert len(set(prints)) == len(prints)
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is True
    failed = any(r["level"] == "error" for r in run["results"])
    assert invocation["exitCode"] == (1 if failed else 0)


def test_nodes_are_logical_locations(tmp_path: Path) -> None:
    document = sarif_of(saved(with_unknown_op(), tmp_path))
    found = [r for r in document["runs"][0]["results"] if r["ruleId"] == "unsupported-op"]
    assert {place["name"] for r in found for place in r["locations"][0]["logicalLocations"]} == {
        "weird"
    }


def test_a_relative_path_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(small_cnn(), tmp_path, "my model.onnx")
    monkeypatch.chdir(tmp_path)
    report = check(Path("my model.onnx"), [load_target("intel-npu")])
    document = to_sarif(report)
    where = document["runs"][0]["artifacts"][0]["location"]["uri"]
    assert where == "my%20model.onnx"
