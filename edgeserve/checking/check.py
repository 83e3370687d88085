"""`check`: read the model, ask the engines, judge each target. Converts nothing and writes nothing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgeserve.checking.estimate import estimates
from edgeserve.checking.links import without_links
from edgeserve.checking.model import OnnxModel, onnx_model
from edgeserve.checking.report import (
    Answer,
    CheckReport,
    EntryReport,
    Estimate,
    Finding,
    Level,
    Operator,
    TargetReport,
    Verdict,
)
from edgeserve.checking.rules import about_nodes, dynamic_dims, issue_message, model_findings
from edgeserve.checking.support import Judge, versions
from edgeserve.errors import SourceError, UsageError
from edgeserve.formats.detect import detect_format
from edgeserve.formats.layers import layers_text, quantized_in
from edgeserve.formats.onnx import OnnxFile
from edgeserve.formats.reading import read_model
from edgeserve.formats.report import ModelReport, passed_text, state_text
from edgeserve.targets.schema import ChainEntry, Target

_ORDER: dict[str, int] = {"error": 0, "warning": 1, "note": 2}
_MB = 1_000_000
# Formats whose files the engines read.
_ASKED = ("onnx", "tflite", "openvino-ir")


def check(
    path: Path,
    targets: Sequence[Target],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> CheckReport:
    """Everything that can be known about converting `path` for `targets` without converting it.

    `shapes` fixes dimensions of inputs by name, as convert does. Raises SourceError (not a model,
    truncated, external data absent), UsageError (`shapes` do not fit), DependencyMissing.
    """
    _refuse_other_sources(path)
    file = read_model(path)
    facts = file.report()
    model = onnx_model(file, shapes) if isinstance(file, OnnxFile) else None
    if shapes and model is None:
        raise UsageError(f"--shape fixes dimensions of ONNX models, and {path} is {facts.format}")
    with without_links(model) if model else contextlib.nullcontext() as opened:
        return _report(path, targets, facts, model, Judge(facts, opened))


def _report(
    path: Path,
    targets: Sequence[Target],
    facts: ModelReport,
    model: OnnxModel | None,
    judge: Judge,
) -> CheckReport:
    sizes = estimates(model, facts.graph_bytes) if model else ()
    int8 = any("int8" in e.precisions for t in targets for e in t.chain)
    findings = list(model_findings(model, int8=int8)) if model else []
    findings += _facts(facts)
    findings += _reference(judge, findings)
    sound = not any(f.level == "error" for f in findings)
    reports = []
    for target in targets:
        report, found = _target(target, judge, model, sizes, sound=sound)
        reports.append(report)
        findings += found
    findings = [_with_helpers(f, judge.verdicts) for f in _merged(findings)]
    return CheckReport(
        path=str(path),
        format=facts.format,
        version=facts.version,
        ok=all(r.ok for r in reports),
        nodes=sum(facts.operators.values()),
        inputs=facts.inputs,
        outputs=facts.outputs,
        engines=versions(),
        targets=tuple(reports),
        operators=_operators(facts, judge.verdicts),
        findings=tuple(sorted(findings, key=lambda f: _ORDER[f.level])),
        estimates=sizes,
    )


def _facts(facts: ModelReport) -> list[Finding]:
    kept, passed = state_text(facts.state), passed_text(facts.passed)
    found = []
    if kept:
        hint = "edgeserve serves each request from the initial state, alone in its batch"
        found.append(Finding("state", "warning", kept, hint=hint))
    if facts.format != "onnx" and quantized_in(facts.layers):  # of ONNX, the rules say so
        found.append(
            Finding("already-quantized", "note", f"{layers_text(facts.layers)} are quantized")
        )
    if passed:
        found.append(Finding("passed-state", "note", passed))
    return found


def _refuse_other_sources(path: Path) -> None:
    """Raise SourceError for sources whose operators show when they are ONNX."""
    format_name = None
    with contextlib.suppress(SourceError):
        format_name = detect_format(path)
    if format_name in (None, *_ASKED):
        if path.is_dir():
            raise SourceError(
                f"{path} is a folder",
                hint="check takes a model file; edgeserve inspect shows bundles",
            )
        return
    raise SourceError(
        f"{path} is {format_name}, and engines are asked about {', '.join(_ASKED)}",
        hint=f"edgeserve convert {path} --precision fp32 -o NAME.edge, then check its "
        "variants/onnx-fp32/model.onnx",
    )


def _reference(judge: Judge, known: Iterable[Finding]) -> list[Finding]:
    """Convert proves variants against the source on onnxruntime's CPU: without that there is none."""
    verdict = judge.reference()
    if verdict is None or verdict.state != "unsupported":
        return []
    if any(f.rule == "opset-too-new" for f in known):
        return []  # said already, with what to do about it
    unknown = {f.op for f in known if f.rule == "unknown-op"}
    found = [
        about_nodes(
            issue.rule,
            "error",
            issue_message("onnxruntime", "cpu", issue),
            issue.op,
            issue.nodes,
            runtime="onnxruntime",
            device="cpu",
        )
        for issue in verdict.issues
        if issue.op not in unknown
    ]
    if not verdict.issues:
        message = f"onnxruntime/cpu refuses the model: {verdict.why}"
        found = [Finding("engine-refuses", "error", message, runtime="onnxruntime", device="cpu")]
    return [
        *found,
        Finding(
            "no-reference",
            "error",
            "onnxruntime's CPU provider cannot run the model, and convert proves every variant "
            "against the source there",
            runtime="onnxruntime",
            device="cpu",
            hint="replace these operators in the export; another runtime alone is not enough",
        ),
    ]


def _target(
    target: Target,
    judge: Judge,
    model: OnnxModel | None,
    sizes: tuple[Estimate, ...],
    *,
    sound: bool,
) -> tuple[TargetReport, list[Finding]]:
    """Judge every entry of a chain. A target is about its first device: one that only its CPU
    fallback could serve is not fine."""
    entries: list[EntryReport] = []
    found: list[list[Finding]] = []
    for entry in (e for e in target.chain if not e.optional):
        verdict = judge.verdict(entry)
        findings = _entry_findings(entry, verdict, model, target, sizes)
        entries.append(
            EntryReport(
                entry.runtime,
                entry.device,
                tuple(entry.precisions),
                ok=not any(f.level == "error" for f in findings),
                state=verdict.state,
                unsupported_nodes=sum(len(i.nodes) for i in verdict.issues),
                why=_why(verdict, findings),
            )
        )
        found.append(findings)
    device = target.chain[0].device
    served = any(e.ok for e in entries if e.device == device)
    report = TargetReport(target.name, target.title, sound and served, tuple(entries))
    result: list[Finding] = []
    for entry_report, findings in zip(entries, found, strict=True):
        # What another entry of the same device makes up for, or a fallback's trouble, is a warning.
        spared = served or entry_report.device != device
        for finding in findings:
            level: Level = "warning" if spared and finding.level == "error" else finding.level
            result.append(msgspec.structs.replace(finding, level=level, targets=(target.name,)))
    return report, result


def _entry_findings(
    entry: ChainEntry,
    verdict: Verdict,
    model: OnnxModel | None,
    target: Target,
    sizes: tuple[Estimate, ...],
) -> list[Finding]:
    """Errors where this entry cannot serve; the caller softens those that others make up for."""
    where: dict[str, Any] = {"runtime": entry.runtime, "device": entry.device}
    found: list[Finding] = []
    for issue in verdict.issues:
        if verdict.state == "partly":
            message = f"{entry.label} leaves {issue.op} to the CPU: {issue.why}"
            found.append(
                about_nodes("cpu-fallback", "warning", message, issue.op, issue.nodes, **where)
            )
        else:
            message = issue_message(entry.runtime, entry.device, issue)
            found.append(about_nodes(issue.rule, "error", message, issue.op, issue.nodes, **where))
    if verdict.state == "unsupported" and not verdict.issues:
        message = f"{entry.label} refuses the model: {verdict.why}"
        found.append(Finding("engine-refuses", "error", message, **where))
    if verdict.state == "no-path":
        found.append(Finding("no-conversion-path", "error", verdict.why, **where))
    if verdict.state == "unverified":
        message = f"{entry.label} is not verified here: {verdict.why}"
        found.append(Finding("not-verified", "note", message, **where))
    if model is not None and (loose := dynamic_dims(model, entry)):
        found.append(loose)
    found += _memory(entry, target, sizes)
    return found


def _memory(entry: ChainEntry, target: Target, sizes: tuple[Estimate, ...]) -> list[Finding]:
    """The estimate against the target's limit; the engine itself comes on top of it."""
    limit = target.limits.memory_mb
    needs = {
        e.precision: e.peak_memory_bytes or e.weight_bytes
        for e in sizes
        if e.precision in entry.precisions
    }
    if limit is None or not needs:
        return []
    over = {p: need for p, need in needs.items() if need > limit * _MB}
    if not over:
        return []
    listed = ", ".join(f"{p} {need / _MB:.1f} MB" for p, need in over.items())
    fits = [p for p in needs if p not in over]
    message = f"{entry.label} needs about {listed}; {target.name} has {limit} MB"
    return [
        Finding(
            "memory-limit",
            "warning" if fits else "error",
            message,
            runtime=entry.runtime,
            device=entry.device,
            hint=f"convert with --precision {fits[0]}"
            if fits
            else "a smaller model or input is needed (memory_mb in the target's [limits])",
        )
    ]


def _why(verdict: Verdict, findings: list[Finding]) -> str:
    if verdict.state in ("runs", "partly"):
        other = next((f for f in findings if f.level == "error"), None)
        return other.message if other else verdict.why
    return verdict.why


def _merged(findings: list[Finding]) -> list[Finding]:
    """The same finding of several targets once, with all their names."""
    merged: dict[Finding, tuple[str, ...]] = {}
    for finding in findings:
        key = msgspec.structs.replace(finding, targets=())
        merged[key] = (*merged.get(key, ()), *finding.targets)
    # What holds for every target is not repeated for the entry that shows it.
    general = {_subject(f) for f, targets in merged.items() if not targets}
    return [
        msgspec.structs.replace(f, targets=tuple(dict.fromkeys(targets)))
        for f, targets in merged.items()
        if not targets or _subject(f) not in general
    ]


def _subject(finding: Finding) -> tuple[str | None, ...]:
    return (finding.rule, finding.message, finding.runtime, finding.device)


def _with_helpers(finding: Finding, verdicts: Iterable[Verdict]) -> Finding:
    """Name the runtimes that do have an operator which another lacks."""
    if finding.rule not in ("unsupported-op", "unsupported-type") or finding.hint:
        return finding
    others = [v for v in verdicts if v.label != f"{finding.runtime}/{finding.device}"]
    able = sorted({v.label for v in others if _answer(v, str(finding.op)) == "yes"})
    unknown = sorted({v.label for v in others if _answer(v, str(finding.op)) == "unverified"})
    if able:
        hint = f"{', '.join(able)} can run it"
    elif unknown:
        hint = f"no runtime that was asked can run it; {', '.join(unknown)} could not be asked"
    else:
        hint = "no runtime that was asked can run it: export the model with standard operators"
    return msgspec.structs.replace(finding, hint=hint)


def _operators(facts: ModelReport, verdicts: Iterable[Verdict]) -> tuple[Operator, ...]:
    asked = sorted(verdicts, key=lambda v: v.label)
    return tuple(
        Operator(op, count, {v.label: _answer(v, op) for v in asked})
        for op, count in Counter(facts.operators).most_common()
    )


def _answer(verdict: Verdict, op: str) -> Answer:
    if any(issue.op == op for issue in verdict.issues):
        return "partly" if verdict.state == "partly" else "no"
    if verdict.state == "no-path":
        return "no"
    # A refusal that names no operator says nothing about any.
    unclear = verdict.state == "unsupported" and not verdict.issues
    return "unverified" if unclear or verdict.state == "unverified" else "yes"
