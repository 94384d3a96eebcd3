"""Settled states tell of every model, and of every mistake, what all states tell."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace

import pytest

from order_saga import SAGA
from saga.verify import Model, model_of
from saga.verify.machine import Machine
from saga.verify.search import explore
from saga.view import View, Violation
from tests.errands import SAGA as ERRANDS
from tests.moving import SAGA as MOVING
from tests.unit.twins import TWINS, Twin

LARGE = {"two orders"}
"""Too large for the short run, without being settled."""


def seen_by_rules(model: Model, *, settled: bool) -> set[Hashable]:
    """What rules look at in any state of a model; apart from that, what they do at rest, where all
    of them apply."""
    seen: set[Hashable] = set()

    def look(view: View, at_rest: bool) -> Iterable[Violation]:
        known = frozenset((name, frozenset(known.items())) for name, known in view.known.items())
        told = frozenset(
            mark.id for about in view.told.subjects() for mark in view.told.about(about)
        )
        books = tuple(view.books(type(outside.blank)) for outside in model.outside)
        seen.add((known, told, books))
        if at_rest:
            seen.add(("at rest", known, told, books))
        return ()

    exploration = explore(Machine(replace(model, judge=look)), settled=settled)
    assert exploration.found is None
    assert exploration.whole
    return seen


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            model_of(saga, one.name),
            id=f"{saga.name}-{one.name}",
            marks=[pytest.mark.long] if one.name in LARGE else [],
        )
        for saga in (SAGA, MOVING, ERRANDS)
        for one in saga.scenarios
    ],
)
def test_rules_look_at_the_same(model: Model) -> None:
    assert seen_by_rules(model, settled=True) == seen_by_rules(model, settled=False)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_mistake_is_found_either_way(twin: Twin) -> None:
    settled, each = (
        explore(Machine(twin.model()), settled=settled).found for settled in (True, False)
    )
    assert settled is not None
    assert each is not None
    assert (settled.violation, len(settled.states)) == (each.violation, len(each.states))
