"""The page on security: each threat names a test, and there is such a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
THREATS = re.search(r"^## Threats.*?(?=^## )", PAGE, re.MULTILINE | re.DOTALL)


def threats() -> list[str]:
    assert THREATS is not None
    return [row for row in THREATS[0].splitlines() if row.startswith("| ")][1:]


@pytest.mark.parametrize("row", threats(), ids=lambda row: row.split("|")[1].strip())
def test_each_threat_names_a_test_that_there_is(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[3])
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}, file
