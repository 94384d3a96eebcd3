"""What a world of one unit, one price, one currency and one priority never shows is found too."""

from __future__ import annotations

from uuid import UUID

import pytest

from order_saga import SAGA
from order_saga.outsides import PROVIDER
from payment_service.domain import Charge
from payment_service.ledger import Ledger
from saga.outside import Outside
from saga.verify import model_of, verify
from tests.unit.wider_twins import WIDER, WiderTwin, a_provider_that_is_away_declines

SMALL = ("another currency", "an urgent order", "a shelf", "a mail that is taken")
"""Scenarios that no other test explores."""


@pytest.mark.parametrize("twin", WIDER, ids=lambda twin: twin.name)
def test_a_mistake_that_shows_only_in_a_wider_world_is_found(twin: WiderTwin) -> None:
    schedule = verify(model_of(SAGA.with_(twin.make()), twin.scenario)).schedule

    assert schedule is not None
    assert schedule.violation.rule in twin.rules


@pytest.mark.parametrize("scenario", SMALL)
def test_nothing_goes_wrong_in_a_wider_world(scenario: str) -> None:
    assert verify(model_of(SAGA, scenario)).ok


def test_our_own_adapter_makes_no_answer_of_an_outage() -> None:
    charge = Charge(order_id=UUID(int=1), customer="ada", currency="EUR", amount_cents=500)

    assert [*PROVIDER.hear_in_vain(Ledger(), charge)] == []


def test_an_answer_that_is_made_of_an_outage_is_heard_before_and_after_the_effect() -> None:
    charge = Charge(order_id=UUID(int=1), customer="ada", currency="EUR", amount_cents=500)
    provider = a_provider_that_is_away_declines()
    assert isinstance(provider, Outside)

    heard = [(len(books), said) for _, books, said in provider.hear_in_vain(Ledger(), charge)]

    assert heard == [
        (0, "GatewayUnavailable, before anything is done"),
        (1, "GatewayUnavailable, when all is done"),
    ]
