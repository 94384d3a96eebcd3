"""The list of the kernel's mutants is in step with the kernel and with the tests."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.kernel_mutants import MUTANTS, ROOT, KernelMutant, main

PARTS = {
    "lanes": "kernel/lanes.py",
    "acknowledgement": "messaging/acknowledgement.py",
    "retry": "saga/retry.py",
    "consumer": "messaging/consumer.py",
    "dead letters": "messaging/dead_letters.py",
    "fold": "kernel/fold.py",
    "decision": "kernel/step.py",
    "group": "kernel/kernel.py",
    "transaction": "kernel/transaction.py",
    "outbox": "kernel/outbox.py",
    "leases": "kernel/leases.py",
    "publisher": "messaging/publisher.py",
    "inbox": "kernel/inbox.py",
    "a database in a file": "kernel/sqlite.py",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mistake)
def test_a_mutant_is_another_program(mutant: KernelMutant) -> None:
    source = (ROOT / mutant.file).read_text()
    changed = mutant.changed_text(source)

    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mistake)
def test_the_test_that_finds_it_exists(mutant: KernelMutant) -> None:
    file, name = mutant.function
    tree = ast.parse((ROOT / file).read_text())

    assert name in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_each_part_of_the_kernel_has_mutants_and_each_mistake_a_name() -> None:
    for part, file in PARTS.items():
        assert any(mutant.file.endswith(file) for mutant in MUTANTS), f"none is in {part}"
    assert max(Counter(mutant.mistake for mutant in MUTANTS).values()) == 1
    assert len({(mutant.file, mutant.original, mutant.changed) for mutant in MUTANTS}) == len(
        MUTANTS
    )


def test_lines_that_are_not_there_once_are_named() -> None:
    mutant = MUTANTS[0]

    with pytest.raises(ValueError, match=r"lanes\.py has these lines 0 times, not once"):
        mutant.changed_text("")
    with pytest.raises(ValueError, match="2 times"):
        mutant.changed_text(mutant.original * 2)


def test_words_that_no_mutant_has_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kernel_mutants", "no such mistake"])

    assert main() == 2
    assert "no kernel mutant has no such mistake" in capsys.readouterr().err
