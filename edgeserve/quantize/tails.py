"""The end of a graph where parts of different scale become one tensor, and names for nodes without.

Detectors join boxes (in pixels) and scores (0 to 1). Int8 gives a tensor one scale, that of its largest
part, in which every score rounds to 0: such a tail stays in fp32, the heads before it do not.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

# An eighth of the range is three of eight bits lost.
MIXED: Final = 8.0
# Move values without changing them.
_MOVING: Final = {"Concat", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity",
                  "Slice", "Split", "Gather", "Cast", "Pad", "Expand", "Tile"}  # fmt: skip


class Tail(msgspec.Struct, frozen=True):
    """`nodes` to leave in fp32 for the sake of `output`; `joint` is the node that joins parts whose
    ranges are `narrow` and `wide`, in what units they have."""

    output: str
    joint: str
    narrow: float
    wide: float
    nodes: tuple[str, ...]


def mixed_tails(model: Any, ranges: Mapping[str, float]) -> tuple[Tail, ...]:
    """The tails of a graph whose joints mix ranges. `ranges` are the widths of tensors' values."""
    writers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for output in model.graph.output:
        nodes = _moving_nodes(output.name, writers)
        mixed = []
        for node in nodes:
            widths = [ranges[n] for n in node.input if ranges.get(n)]
            if node.op_type == "Concat" and len(widths) > 1 and max(widths) > MIXED * min(widths):
                mixed.append((max(widths) / min(widths), node.name, min(widths), max(widths)))
        if mixed:
            _, joint, narrow, wide = max(mixed)
            found.append(Tail(output.name, joint, narrow, wide, tuple(n.name for n in nodes)))
    return tuple(found)


def _moving_nodes(output: str, writers: Mapping[str, Any]) -> list[Any]:
    """The nodes between an output and what computes its values, the last first."""
    nodes: dict[str, Any] = {}
    waiting = [output]
    while waiting:
        node = writers.get(waiting.pop())
        if node is None or node.op_type not in _MOVING or node.name in nodes:
            continue
        nodes[node.name] = node
        waiting += list(node.input) if node.op_type == "Concat" else list(node.input[:1])
    return list(nodes.values())


def read_ranges(cache: Path) -> dict[str, float]:
    """The width of each tensor's values from onnxruntime's calibration cache."""
    tensors = json.loads(cache.read_bytes())["data"]
    widths = {}
    for name, tensor in tensors.items():
        fields = tensor.get("data", tensor)
        ends = [max(_numbers(fields[end])) for end in ("highest",) if end in fields]
        starts = [min(_numbers(fields[start])) for start in ("lowest",) if start in fields]
        if ends and starts:
            widths[name] = max(ends[0], 0.0) - min(starts[0], 0.0)
    return widths


def _numbers(value: Any) -> list[float]:
    """Numbers in what the cache makes of an array: a number, a list, or a record with `data`."""
    if isinstance(value, Mapping):
        return _numbers(value.get("data", []))
    if isinstance(value, list):
        return [n for v in value for n in _numbers(v)]
    return [float(value)] if isinstance(value, int | float) else []


def name_nodes(onnx: Any, file: Path) -> None:
    """Give each node of a file a name of its own, after its output: nodes are chosen by name, and exporters
    may leave names out or use one twice."""
    model = onnx.load_model(str(file), load_external_data=False)
    taken: set[str] = set()
    changed = False
    for node in model.graph.node:
        if not node.name or node.name in taken:
            node.name = _free(
                f"{node.op_type}/{node.output[0]}" if node.output else node.op_type, taken
            )
            changed = True
        taken.add(node.name)
    if changed:
        onnx.save_model(model, str(file))


def _free(name: str, taken: Collection[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
