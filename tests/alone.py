"""The tree without the order system: which tests are the engine's, told by what they import."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
ORDERS: Final = (
    *("common", "order_saga"),
    *("order_service", "inventory_service", "payment_service", "notification_service"),
)
"""The packages of the order system."""
MEASURED: Final = "bench"
"""What measures it."""
GENERATED: Final = ("contracts", "monitoring", "rabbitmq")
"""What `make generate` writes for it."""
ASKING: Final = frozenset({"choreography", "observers", "packages", "participants", "services"})
"""What `saga.discovery` tells of the saga that the project names: a test that asks is about it."""
OF_ANY_SAGA: Final = frozenset({"tests.forked", "tests.stores"})
"""These ask as well, and serve whichever saga `SAGA` names."""
OF_THE_TREE: Final = frozenset(
    {"tests.unit.test_names", "tests.unit.test_simulation", "tests.integration.test_due_tools"}
)
"""They look at all packages there are, or run the saga that the project names."""
LEFT_OUT: Final = (
    *(".git", ".venv*", "data", "mutants", "build", "dist", "*.egg-info", ".rabbitmq*"),
    *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
)


def engines_tests(root: Path = ROOT) -> list[Path]:
    """The files with tests that know nothing of the orders, not even by a helper, and do not ask
    for the saga that the project names."""
    return [file for file in _engines_files(root) if file.name.startswith("test_")]


def copy_without_orders(folder: Path) -> None:
    """Copy the tree without the order system and the tests that are about it into a folder that
    does not exist yet."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for package in (*ORDERS, MEASURED, *GENERATED):
        shutil.rmtree(folder / package)
    kept = {*_engines_files(folder)}
    for file in _modules(folder).values():
        if file not in kept:
            file.unlink()
    pyproject = folder / "pyproject.toml"
    text = re.sub(r"^\[tool\.saga\]\n.*\n", "", pyproject.read_text(), flags=re.MULTILINE)
    pyproject.write_text(text)


def _engines_files(root: Path) -> list[Path]:
    modules = _modules(root)
    imports = {name: set(_imports(name, file)) for name, file in modules.items()}
    orders = {name for name, found in imports.items() if any(map(_of_orders, found))}
    orders |= OF_THE_TREE & imports.keys()
    orders |= {
        name
        for name, found in imports.items()
        if name not in OF_ANY_SAGA and found & {f"saga.discovery.{asked}" for asked in ASKING}
    }
    while more := {name for name in imports.keys() - orders if _needs(name, imports) & orders}:
        orders |= more
    return [modules[name] for name in sorted(modules.keys() - orders)]


def _modules(root: Path) -> dict[str, Path]:
    """Keyed by its name: each module of the tests."""
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (root / "tests").rglob("*.py")
    }


def _imports(name: str, file: Path) -> Iterator[str]:
    """The modules, and names in them, that a module imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                raise ValueError(f"{name} imports relatively; write the whole name")
            case _:
                pass


def _of_orders(imported: str) -> bool:
    return imported.partition(".")[0] in (*ORDERS, MEASURED, *GENERATED)


def _needs(name: str, imports: Mapping[str, set[str]]) -> set[str]:
    """What a module needs in order to run: what it imports, and as a test its `conftest`."""
    folder, _, last = name.rpartition(".")
    return imports[name] | ({f"{folder}.conftest"} if last.startswith("test_") else set())
