"""What the two styles of the order flow are compared by, as far as no load is needed for it."""

from __future__ import annotations

import pytest

from bench.rig import Variant
from bench.shapes import known, step
from bench.styles import CHOREOGRAPHY, ORCHESTRATION, STYLES, takers_of


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_step_can_be_added_and_the_flow_with_it_is_sound(style: Variant) -> None:
    added = step(style)

    assert added.lines["new participant"] > 0


def test_in_an_orchestration_only_the_coordinator_knows_others() -> None:
    others = {each.participant: set(each.others) for each in known(ORCHESTRATION)}

    assert others.pop("coordinator") == {"inventory", "payment"}
    assert set(map(frozenset, others.values())) == {frozenset({"coordinator"})}


def test_in_a_choreography_whoever_comes_next_knows_who_came_before() -> None:
    others = {each.participant: set(each.others) for each in known(CHOREOGRAPHY)}

    assert others["payment"] == {"inventory", "order"}


def test_a_cancellation_is_read_by_all_and_a_command_by_one() -> None:
    assert takers_of(CHOREOGRAPHY)["order.cancelled"] == 2
    assert takers_of(ORCHESTRATION)["payment.cancel"] == 1
