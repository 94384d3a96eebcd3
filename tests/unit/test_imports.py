"""Modules of the engine import each other in one direction only."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]


def modules() -> dict[str, Path]:
    """The engine's modules, by name."""
    found = {}
    for path in sorted((ROOT / "saga").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST, *, known: Mapping[str, object]) -> Iterator[str]:
    """The known modules that code imports when it runs, within functions as well: an import that
    waits for a call may only hide a circle. What is imported for types alone does not run."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in known)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                module = f"{child.module}.{alias.name}"
                module = module if module in known else str(child.module)
                if module in known:
                    yield module
        else:
            yield from imports(child, known=known)


def test_no_modules_of_the_engine_import_each_other_in_a_circle() -> None:
    known = modules()
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for name, path in known.items():
        graph[name].update(imports(ast.parse(path.read_text()), known=known))
    assert sum(map(len, graph.values())) > 500  # They are found.

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
