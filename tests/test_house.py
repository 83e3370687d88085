"""The house as the code has it: no cycle of imports, and no two classes of one name."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import edgeserve

ROOT: Final = Path(edgeserve.__file__).parent
# Classes of one name that are the same idea, and how; every other class needs a name of its own.
SAME_NAME: Final = {
    "InsteadOf": "what the server answers, and what its client reads",
    "ModelStatus": "what the server answers, and what its client reads",
    "ServerStatus": "what the server answers, and what its client reads",
    "WorkerStatus": "what the server answers, and what its client reads",
}


def test_no_import_leads_back_not_even_one_inside_a_function_or_for_types() -> None:
    graph = {module: set(imported(module, tree)) for module, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_every_public_class_has_a_name_of_its_own() -> None:
    places = defaultdict(list)
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    shared = {name: where for name, where in places.items() if len(where) > 1}
    assert {n: w for n, w in shared.items() if n not in SAME_NAME} == {}
    assert set(SAME_NAME) == set(shared), "an exception is no longer needed"


def imported(module: str, tree: ast.Module) -> Iterator[str]:
    """The modules of edgeserve that one imports anywhere in its file. A package's own file may import for
    types what it offers lazily."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse if module in PACKAGES else node.body
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in TREES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found = f"{node.module}.{alias.name}"
                target = found if found in TREES else node.module
                if target in TREES and target != module:
                    yield target
        waiting += ast.iter_child_nodes(node)


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(file.read_text("utf-8"), str(file))


TREES: Final = dict(_trees())
PACKAGES: Final = {name for name in TREES if any(n.startswith(f"{name}.") for n in TREES)}
