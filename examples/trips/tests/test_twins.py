"""Of each mistake that is planted, the checker shows where it leads to."""

from __future__ import annotations

import pytest
from saga.verify import model_of, verify

from tests.twins import TWINS
from trips import SAGA

FEW_STEPS = 12


@pytest.mark.parametrize("name", TWINS)
def test_a_mistake_is_found_by_a_shortest_schedule(name: str) -> None:
    twin = TWINS[name]

    schedule = verify(model_of(SAGA.with_(twin.participant()), twin.scenario.name)).schedule

    assert schedule is not None
    assert (schedule.violation.rule, len(schedule.steps)) == (twin.rule, twin.steps)


def test_most_mistakes_show_in_a_few_steps() -> None:
    assert len(TWINS) >= 10
    assert sum(twin.steps <= FEW_STEPS for twin in TWINS.values()) > len(TWINS) / 2
