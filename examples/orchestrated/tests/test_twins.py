"""Of each mistake that is planted, the checker shows where it leads to."""

from __future__ import annotations

import pytest
from saga.verify import model_of, verify

from orchestrated import SAGA
from tests.twins import TWINS

STEPS_MAX = 12


@pytest.mark.parametrize("name", TWINS)
def test_a_mistake_is_found_in_a_few_steps(name: str) -> None:
    make, rule = TWINS[name]

    schedule = verify(model_of(SAGA.with_(make()), "one order")).schedule

    assert schedule is not None
    assert schedule.violation.rule == rule
    assert len(schedule.steps) <= STEPS_MAX
