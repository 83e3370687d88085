"""Findings as SARIF 2.1.0, for code scanning (OASIS, "Static Analysis Results Interchange Format")."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from edgeserve.checking.report import RULES, CheckReport, Finding
from edgeserve.version import __version__

_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def to_sarif(report: CheckReport) -> dict[str, Any]:
    """One run. Each node a finding names is a logical location of its result (kind `member`)."""
    used = sorted({f.rule for f in report.findings})
    index = {rule: i for i, rule in enumerate(used)}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "edgeserve check",
                        "version": __version__,
                        "semanticVersion": __version__,
                        "rules": [_rule(rule) for rule in used],
                    }
                },
                "invocations": [{"executionSuccessful": True, "exitCode": 0 if report.ok else 1}],
                "artifacts": [{"location": {"uri": _uri(report.path)}}],
                "results": [_result(f, report.path, index[f.rule]) for f in report.findings],
                "columnKind": "utf16CodeUnits",
            }
        ],
    }


def _rule(rule: str) -> dict[str, Any]:
    name = "".join(word.capitalize() for word in rule.split("-"))
    return {"id": rule, "name": name, "shortDescription": {"text": RULES[rule]}}


def _result(finding: Finding, path: str, rule_index: int) -> dict[str, Any]:
    text = finding.message + (f" Hint: {finding.hint}" if finding.hint else "")
    more = finding.node_count - len(finding.nodes)
    properties = {
        "targets": list(finding.targets),
        "runtime": finding.runtime,
        "device": finding.device,
        "op": finding.op,
        "nodeCount": finding.node_count,
    }
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(path), "index": 0}}
    }
    if finding.nodes:
        text += f" Nodes: {', '.join(finding.nodes)}" + (f" and {more} more" if more > 0 else "")
        location["logicalLocations"] = [
            {"name": node, "fullyQualifiedName": f"graph/{node}", "kind": "member"}
            for node in finding.nodes
        ]
    identity = [finding.rule, finding.runtime, finding.device, finding.op, *finding.targets]
    digest = hashlib.sha256("\0".join(map(str, identity)).encode()).hexdigest()
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "level": finding.level,
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"edgeserveFinding/v1": digest},
        "properties": {k: v for k, v in properties.items() if v},
    }


def _uri(path: str) -> str:
    """A relative path as a relative URI (code scanning wants those), an absolute one as `file:`."""
    file = Path(path)
    return file.as_uri() if file.is_absolute() else quote(file.as_posix())
