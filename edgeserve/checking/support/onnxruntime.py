"""What onnxruntime runs: its own tables of schemas and kernels name every node, and a session that it
builds, or refuses to build, has the last word."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import Any, Final

import msgspec

from edgeserve.checking.model import Node, OnnxModel
from edgeserve.checking.report import Issue, State, Verdict
from edgeserve.devices.names import device_kind
from edgeserve.errors import EdgeServeError
from edgeserve.formats.onnx_weights import PROTOBUF_BYTES
from edgeserve.runtimes.onnx_providers import CPU, PROVIDERS

# A session copies the weights; beyond this the tables alone must do.
_MAX_SESSION_BYTES: Final = min(1_000_000_000, PROTOBUF_BYTES)
_NO_END: Final = 2**31 - 1
# onnxruntime surrounds half-precision nodes that the CPU has no kernel for with casts to float
# (core/optimizer/insert_cast_transformer.cc).
_HALF, _FLOAT = "tensor(float16)", "tensor(float)"


class _Kernel(msgspec.Struct, frozen=True):
    first: int
    last: int
    types: dict[str, frozenset[str]]


class _Schema(msgspec.Struct, frozen=True):
    since: int
    inputs: tuple[tuple[str, str, bool], ...]  # name, type parameter, variadic
    outputs: tuple[tuple[str, str, bool], ...]
    types: dict[str, frozenset[str]]


class _Tables(msgspec.Struct, frozen=True):
    """All schemas by (domain, operator), and kernels by (provider, domain, operator)."""

    schemas: dict[tuple[str, str], tuple[_Schema, ...]]
    kernels: dict[tuple[str, str, str], tuple[_Kernel, ...]]
    newest: dict[str, int]  # domain -> the last opset this build knows

    def has(self, provider: str) -> bool:
        return any(key[0] == provider for key in self.kernels)


def judge(model: OnnxModel, device: str, provider: str | None = None) -> Verdict:
    """The verdict on an ONNX model, as it is, on the CPU or on an accelerator's provider."""
    try:
        import onnxruntime as ort
    except ImportError:
        return Verdict("onnxruntime", device, "unverified", "onnxruntime is not installed")
    if device == "cpu":
        return _judge_cpu(model, ort.__version__)
    wanted = (provider,) if provider else PROVIDERS.get(device_kind(device), ())
    return _judge_accelerator(model, device, wanted, ort)


def newest_opset(domain: str = "") -> int | None:
    """The last opset of a domain that the installed onnxruntime knows; None when it does not say."""
    tables = _tables()
    return tables.newest.get(domain) if tables else None


def _judge_cpu(model: OnnxModel, version: str) -> Verdict:
    engine = f"onnxruntime {version}"
    tables = _tables()
    issues = tuple(_issues(model, tables, CPU)) if tables else ()
    if model.size_bytes > _MAX_SESSION_BYTES:
        if tables is None:
            why = f"{engine} can only tell by loading the model, which is too large for that"
            return Verdict("onnxruntime", "cpu", "unverified", why)
        state: State = "unsupported" if issues else "runs"
        why = f"by the kernel tables of {engine}; too large to open for a check"
        return Verdict("onnxruntime", "cpu", state, why, issues)
    error = _session_error(model)
    if error is None:
        return Verdict("onnxruntime", "cpu", "runs", f"{engine} opened it")
    named = _named_in(model, error)
    known = {issue.op for issue in issues}
    issues += tuple(issue for issue in named if issue.op not in known)
    return Verdict("onnxruntime", "cpu", "unsupported", error, issues)


def _judge_accelerator(model: OnnxModel, device: str, wanted: tuple[str, ...], ort: Any) -> Verdict:
    """Kernel tables of a provider in this build, or, where it opens, how a session places the nodes."""
    engine = f"onnxruntime {ort.__version__}"
    available = [p for p in wanted if p in ort.get_available_providers()]
    if not available:
        why = f"this {engine} has no {' or '.join(wanted) or 'provider for it'}"
        return Verdict("onnxruntime", device, "unverified", why)
    provider = available[0]
    tables = _tables()
    if tables is None or not tables.has(provider):
        why = (
            f"{provider} does not list its kernels: opening the model on it shows what it supports"
        )
        return Verdict("onnxruntime", device, "unverified", why)
    issues = tuple(_issues(model, tables, provider))
    state: State = "partly" if issues else "runs"
    return Verdict(
        "onnxruntime", device, state, f"by the kernel tables of {engine}, {provider}", issues
    )


@cache
def _tables() -> _Tables | None:
    """What this build of onnxruntime was compiled with; None for builds that do not tell."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        schema_defs, kernel_defs = state.get_all_operator_schema(), state.get_all_opkernel_def()
    except (ImportError, AttributeError):
        return None
    schemas: dict[tuple[str, str], list[_Schema]] = defaultdict(list)
    newest: dict[str, int] = defaultdict(int)
    for schema in schema_defs:
        newest[schema.domain] = max(newest[schema.domain], schema.since_version)
        schemas[schema.domain, schema.name].append(
            _Schema(
                schema.since_version,
                _parameters(schema.inputs),
                _parameters(schema.outputs),
                {t.type_param_str: frozenset(t.allowed_type_strs) for t in schema.type_constraints},
            )
        )
    kernels: dict[tuple[str, str, str], list[_Kernel]] = defaultdict(list)
    for kernel in kernel_defs:
        first, last = kernel.version_range
        types = {name: frozenset(t) for name, t in kernel.type_constraints.items()}
        key = (kernel.provider, kernel.domain, kernel.op_name)
        kernels[key].append(_Kernel(first, last, types))
    return _Tables(
        {k: tuple(v) for k, v in schemas.items()},
        {k: tuple(v) for k, v in kernels.items()},
        dict(newest),
    )


def _parameters(formals: Any) -> tuple[tuple[str, str, bool], ...]:
    return tuple((f.name, f.typeStr, f.option.name == "Variadic") for f in formals)


def _issues(model: OnnxModel, tables: _Tables, provider: str) -> list[Issue]:
    """Every operator with nodes that no kernel of `provider`, and no function body, covers."""
    problems: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for node in model.nodes:
        problem = _problem(model, node, tables, provider)
        if problem is not None:
            problems[node.op, *problem].append(node.name)
    return [
        Issue(rule, op, tuple(nodes), why) for (op, rule, why), nodes in sorted(problems.items())
    ]


def _problem(
    model: OnnxModel, node: Node, tables: _Tables, provider: str
) -> tuple[str, str] | None:
    """The rule a node breaks and why, or None when `provider` runs it."""
    if node.op in model.functions or node.op == "Constant":
        return None
    known = tables.schemas.get((node.domain, node.op_type), ())
    fitting = [s for s in known if node.opset is None or s.since <= node.opset]
    if not fitting:
        why = f"not in opset {node.opset}" if known else "no such operator"
        return "unsupported-op", why
    schema = max(fitting, key=lambda s: s.since)
    # Types inside a function are those of its caller: only the session knows them.
    given = {} if node.in_function else _given_types(model, node, schema)
    for parameter, dtype in given.items():
        allowed = schema.types.get(parameter)
        if allowed is not None and dtype not in allowed:
            return "unsupported-type", f"not defined for {dtype} in opset {node.opset}"
    kernels = [
        k
        for k in tables.kernels.get((provider, node.domain, node.op_type), ())
        if _covers(k, schema.since)
    ]
    if any(_takes(k, given, schema) for k in kernels) or _is_function(node, schema.since):
        return None
    if provider == CPU and any(_takes(k, _widened(given), schema) for k in kernels):
        return None
    if not kernels:
        return "unsupported-op", "no kernel"
    return "unsupported-type", f"no kernel for {', '.join(sorted(set(given.values())))}"


def _covers(kernel: _Kernel, since: int) -> bool:
    """onnxruntime's own rule (core/framework/kernel_registry.cc, VerifyKernelDef)."""
    return kernel.first == since or (
        kernel.first < since and kernel.last != _NO_END and kernel.last >= since
    )


def _takes(kernel: _Kernel, given: dict[str, str], schema: _Schema) -> bool:
    """A kernel names its constraints by type parameter, a few old ones by the argument's name."""
    arguments = {name: parameter for name, parameter, _ in (*schema.inputs, *schema.outputs)}
    for constraint, allowed in kernel.types.items():
        dtype = given.get(constraint) or given.get(arguments.get(constraint, ""))
        if dtype is not None and dtype not in allowed:
            return False
    return True


def _widened(given: dict[str, str]) -> dict[str, str]:
    return {p: _FLOAT if dtype == _HALF else dtype for p, dtype in given.items()}


def _given_types(model: OnnxModel, node: Node, schema: _Schema) -> dict[str, str]:
    """The types that the model gives to a schema's type parameters, as far as they are known."""
    given: dict[str, str] = {}
    for names, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, name in enumerate(names):
            if not formals or (index >= len(formals) and not formals[-1][2]):
                break
            _, parameter, variadic = formals[min(index, len(formals) - 1)]
            value = model.values.get(name)
            if value is None or (variadic and parameter in given):
                continue
            given.setdefault(parameter, f"tensor({value.dtype.lower()})")
    return given


def _is_function(node: Node, since: int) -> bool:
    """Whether ONNX defines the operator by other operators: onnxruntime then runs those."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, since, node.domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _session_error(model: OnnxModel) -> str | None:
    """Open the model without optimizing it; what onnxruntime says when it refuses."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.path.resolve().parent)
    )
    content = model.proto.SerializeToString() if model.changed or model.external else None
    try:
        ort.InferenceSession(content or str(model.path), settings, providers=[CPU])
    except EdgeServeError:
        raise
    except Exception as error:  # noqa: BLE001 - its exception classes share no base but Exception
        return _said(error)
    return None


def _said(error: Exception) -> str:
    """onnxruntime's message without its code, and without the place in its source."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"/onnxruntime_src/\S+ .*?\)(?= [A-Z])", "", text).strip()


def _named_in(model: OnnxModel, error: str) -> list[Issue]:
    """The operator and node that onnxruntime's refusal names, if it names one."""
    patterns = (
        (
            r"implementation for ([\w.:]+)\(\d+\) node with name '([^']*)'",
            "no kernel for its types",
        ),
        (r"([\w.]+:\w+)\(-?\d+\) is not a registered function/op", "no such operator"),
        (r"No Op registered for (\w+)", "no such operator"),
    )
    for pattern, why in patterns:
        found = re.search(pattern, error)
        if found is None:
            continue
        op = found[1].replace(":", ".")
        node = found[2] if found.re.groups > 1 else ""
        nodes = model.named(op)
        if not nodes:  # it names a node of a function's body
            return []
        return [Issue("unsupported-op", op, (node,) if node in nodes else nodes, why)]
    return []
