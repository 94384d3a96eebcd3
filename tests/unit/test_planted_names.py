"""What a test looks for and must not find is never found by chance: an identifier, a token or a
digest somewhere in the text may be made of the same letters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
BY_CHANCE: Final = re.compile(r"[0-9a-f]{2,6}", re.IGNORECASE)
"""Some of these are in one of a few thousand UUIDs, or in most of them."""


def modules() -> list[Path]:
    folders = [ROOT / "tests", *sorted(ROOT.glob("examples/*/tests"))]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def constants(tree: ast.Module) -> dict[str, str]:
    """The texts that the module gives names to, keyed by the name."""
    found: dict[str, str] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found |= {name.id: value.value for name in targets if isinstance(name, ast.Name)}
    return found


def planted(tree: ast.Module, known: dict[str, str]) -> Iterator[tuple[int, str]]:
    """The line, and the text that is not to be in another one there."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.NotIn):
            continue
        if not isinstance(node.comparators[0], ast.Name | ast.Attribute | ast.Call | ast.BinOp):
            continue  # A literal that is written there holds nothing that is made at random.
        for part in ast.walk(node.left):
            if isinstance(part, ast.Name) and part.id in known:
                yield node.lineno, known[part.id]
            elif isinstance(part, ast.Constant) and isinstance(part.value, str | bytes):
                text = part.value
                yield node.lineno, text if isinstance(text, str) else text.decode("latin-1")


def test_what_must_not_be_found_is_not_found_by_chance() -> None:
    trees = {path: ast.parse(path.read_text()) for path in modules()}
    known: dict[str, str] = {}
    for tree in trees.values():
        known |= constants(tree)

    looked_for = [
        (path, line, text) for path, tree in trees.items() for line, text in planted(tree, known)
    ]

    assert len(looked_for) > 100
    for path, line, text in looked_for:
        assert not BY_CHANCE.fullmatch(text), (
            f"{path.relative_to(ROOT)}:{line} looks for {text!r}, which identifiers have as well: "
            f"plant a name with other letters"
        )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("assert 'ada' not in answer.body", "ada"),
        ("assert b'ada' not in answer.body", "ada"),
        ("WHO = 'abe'\nassert WHO.encode() not in body", "abe"),
        ("WHO: str = 'abe'\nassert WHO not in read()", "abe"),
    ],
)
def test_each_way_of_looking_is_seen(source: str, text: str) -> None:
    tree = ast.parse(source)

    assert [found for _, found in planted(tree, constants(tree))] == [text]
