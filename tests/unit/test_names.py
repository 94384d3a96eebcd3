"""One word, one thing: a class name has one meaning in the whole tree."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = ("bench", "monitoring")
TEMPLATE: Final = ROOT / "saga" / "template"
"""What `saga new` copies: a project of its own, with words of its own."""
TWICE: Final = {
    "Delivery": "the broker's is AMQP's word; the warehouse's is a state, whose name is in rows "
    "and audit records that exist",
}
"""Class names with two meanings, and why neither can be another."""


def packages() -> list[str]:
    """The packages of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [*project["tool"]["importlinter"]["root_packages"], *TOOLS]


def classes() -> dict[str, list[str]]:
    """Where each class name is defined."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for package in packages():
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.is_relative_to(TEMPLATE):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_a_class_name_has_one_meaning() -> None:
    places = classes()
    assert len(places) > 300  # They are looked for where they are.

    twice = {name: where for name, where in places.items() if len(where) > 1}

    assert {name: where for name, where in twice.items() if name not in TWICE} == {}, (
        "call the less central one what it is; where neither can be another, say why in TWICE"
    )
    assert twice.keys() == TWICE.keys()  # What is excepted has two meanings still.
