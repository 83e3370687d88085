"""What OpenVINO runs: its ONNX frontend names every operator it cannot translate, and `query_model`
of a device that opens here names what its plugin cannot run."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from edgeserve import telemetry
from edgeserve.checking.model import OnnxModel
from edgeserve.checking.report import Issue, State, Verdict, unnamed

_NAME = "openvino"


def judge_onnx(model: OnnxModel, device: str) -> Verdict:
    """The frontend's verdict, then the device's. Shapes are left as they are in the file."""
    openvino = _openvino()
    if openvino is None:
        return Verdict(_NAME, device, "unverified", "openvino is not installed")
    engine = f"openvino {_version(openvino)}"
    frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    path = str(model.path)
    try:
        network = frontend.convert(frontend.load(path))
    except Exception as error:  # noqa: BLE001 - its exception classes share no base but Exception
        issues = _unconverted(model, frontend, path, str(error))
        return Verdict(_NAME, device, "unsupported", _reason(error), tuple(issues))
    return _ask_device(openvino, network, device, f"the ONNX frontend of {engine}")


def judge_file(path: Path, device: str, operators: dict[str, int]) -> Verdict:
    """The verdict on an OpenVINO IR or a TFLite file with these `operators`: that of the frontend, which
    stops at the first operator it has no rule for, then the device's."""
    openvino = _openvino()
    if openvino is None:
        return Verdict(_NAME, device, "unverified", "openvino is not installed")
    try:
        network = _core().read_model(path)
    except RuntimeError as error:
        unknown = re.findall(r"No translator found for (\S+) node", str(error))
        issues = tuple(
            Issue("unsupported-op", op, unnamed(op, operators), "its frontend has no rule for it")
            for op in dict.fromkeys(unknown)
        )
        return Verdict(_NAME, device, "unsupported", _reason(error), issues)
    return _ask_device(openvino, network, device, f"openvino {_version(openvino)}")


def _ask_device(openvino: Any, network: Any, device: str, reader: str) -> Verdict:
    """`query_model`, where the device is here; a GPU's or NPU's plugin needs its driver for an answer."""
    kind, _, index = device.partition(".")
    name = kind.upper() + (f".{index}" if index else "")
    core = _core()
    if not any(d == name or d == f"{name}.0" for d in core.available_devices):
        why = f"{reader} reads all of it, but no {name} opens here to check"
        return Verdict(_NAME, device, "unverified", why)
    try:
        supported = core.query_model(network, name)
    except RuntimeError as error:
        return Verdict(_NAME, device, "unsupported", _reason(error))
    missing: dict[str, list[str]] = defaultdict(list)
    for op in network.get_ops():
        if op.get_friendly_name() not in supported:
            missing[op.get_type_name()].append(op.get_friendly_name())
    issues = tuple(
        Issue("unsupported-op", op, tuple(nodes), f"the {name} plugin has no such operator")
        for op, nodes in sorted(missing.items())
    )
    state: State = "unsupported" if issues else "runs"
    return Verdict(_NAME, device, state, f"{reader} reads it, its {name} plugin was asked", issues)


def _unconverted(model: OnnxModel, frontend: Any, path: str, text: str) -> list[Issue]:
    """The operators in OpenVINO's report, with those of their nodes that were left untranslated.

    "No conversion rule found for operations: Op-17, domain.Op", or "Conversion is failed for: Op-17"
    once per operator.
    """
    failed = re.findall(r"[Cc]onversion is failed for: ([\w.]+(?:-\d+)?)", text)
    unknown = [
        op.strip()
        for listed in re.findall(r"No conversion rule found for operations: ([^\n]+)", text)
        for op in listed.split(",")
    ]
    left = _untranslated(frontend, path) if failed else set()
    issues = []
    for op in dict.fromkeys([*unknown, *failed]):
        kind = re.sub(r"-\d+$", "", op)
        # A standard domain may be written out; then the plain name is the model's.
        known = kind if model.named(kind) else kind.removeprefix("ai.onnx.")
        mine = [n for n in model.nodes if n.op == known]
        exact = [n.name for n in mine if left & {n.name, *n.outputs}]
        names = exact or [n.name for n in mine] or ["in a function"]
        why = "its ONNX frontend has no rule for it"
        if op in failed:
            why = "its ONNX frontend fails on it"
        issues.append(Issue("unsupported-op", known, tuple(names), why))
    return issues


def _untranslated(frontend: Any, path: str) -> set[str]:
    """The friendly names of nodes that partial conversion leaves as the framework's."""
    try:
        network = frontend.convert_partially(frontend.load(path))
    except Exception:  # noqa: BLE001 - then the operators' names must do
        return set()
    return {
        op.get_friendly_name() for op in network.get_ops() if op.get_type_name().startswith("ONNX")
    }


@cache
def _core() -> Any:
    telemetry.refuse()
    import openvino

    return openvino.Core()


def _openvino() -> Any:
    telemetry.refuse()
    try:
        import openvino
        import openvino.frontend
    except ImportError:
        return None
    return openvino


def _version(openvino: Any) -> str:
    return str(openvino.__version__).partition("-")[0]


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message that is not a source location."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [repr(error)])[-1]
