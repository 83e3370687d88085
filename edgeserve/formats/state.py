"""State that an ONNX model takes as inputs and gives as outputs: ONNX itself keeps none between calls.

Recognised by recurrent operators and by names, as exporters give them (`past`/`present`, `state`/`stateN`,
`h`/`hn`): remarks for people, which nothing depends on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

_RECURRENT: Final = ("LSTM", "GRU", "RNN")
# Operators that pass on the values of their first input.
_CARRIES: Final = {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Slice",
                   "Gather", "Split"}  # fmt: skip
_NAMED: Final = re.compile(r"state|hidden|cell|cache|past|^[hc](0|x|_0|_in)?$", re.IGNORECASE)
_AFFIX: Final = {"past", "present", "prev", "previous", "next", "new", "in", "out", "input", "output",
                 "final", "initial", "init", "n"}  # fmt: skip


def passed_state(proto: Any) -> list[tuple[str, str]]:
    """Pairs of an input and the output that is that input of the next call, of an `onnx.ModelProto`."""
    graph = proto.graph
    constants = {t.name for t in graph.initializer}
    inputs = {v.name: _type(v) for v in graph.input if v.name not in constants}
    outputs = {v.name: _type(v) for v in graph.output}
    if not all(isinstance(name, str) for name in (*inputs, *outputs)):
        return []  # protobuf hands out a name that is not UTF-8 as bytes
    pairs = {**_by_name(inputs, outputs), **_recurrent(graph, inputs, outputs)}
    return [(name, pairs[name]) for name in inputs if name in pairs]


def _recurrent(graph: Any, inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    given, made = set(inputs), set(outputs)

    def origin(name: str) -> str | None:
        for _ in range(len(makers) + 1):
            if name in given:
                return name
            node = makers.get(name)
            if node is None or node.op_type not in _CARRIES:
                return None
            name = node.input[0]
        return None

    def end(name: str) -> str | None:
        pending, seen = [name], set()
        while pending:
            at = pending.pop()
            if at in made:
                return at
            if at in seen:
                continue
            seen.add(at)
            pending += [o for n in readers.get(at, ()) if n.op_type in _CARRIES for o in n.output]
        return None

    pairs = {}
    for node in (n for n in graph.node if n.op_type in _RECURRENT):
        for taken, made_at in ((5, 1), (6, 2)):  # initial_h -> Y_h, initial_c -> Y_c
            if len(node.input) > taken and len(node.output) > made_at and node.output[made_at]:
                first, last = origin(node.input[taken]), end(node.output[made_at])
                if first is not None and last is not None:
                    pairs[first] = last
    return pairs


def _by_name(
    inputs: dict[str, tuple[int, int]], outputs: dict[str, tuple[int, int]]
) -> dict[str, str]:
    """Inputs named like a state with the one output of the same type, rank and name, affixes aside."""
    pairs = {}
    for name, kind in inputs.items():
        alike = [o for o, other in outputs.items() if other == kind and _core(o) == _core(name)]
        if _NAMED.search(name) and len(alike) == 1:
            pairs[name] = alike[0]
    return pairs


def _core(name: str) -> tuple[str, ...]:
    """The words of a name that are the same for a call and the next: of `stateN`, of `past_key_values.0.key`."""
    plain = re.sub(r"(?<=[a-z])N$", "_n", name).replace("past_key_values", "past").lower()
    words = [w for w in re.split(r"[^a-z0-9]+", plain) if w and w not in _AFFIX]
    return tuple(w[0] if re.fullmatch(r"[hc][0nx]", w) else w for w in words)


def _type(value: Any) -> tuple[int, int]:
    tensor = value.type.tensor_type
    return tensor.elem_type, len(tensor.shape.dim)
