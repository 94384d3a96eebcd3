"""Every message there is, done once more after the inboxes have forgotten it, changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from inventory_service.domain import AddStock
from notification_service.domain import (
    RESENDING_MAX,
    DismissNotification,
    GiveUpResending,
    Resend,
    ResendNotification,
    Result,
    Send,
    SendAnswered,
)
from order_service.domain import CancelOrder, ExpireOrder
from saga.choreography import Participant
from saga.envelope import Envelope
from saga.message import Answer
from tests.order_play import BROKE, Play

LOST = "lost"
"""The customer of whose mails it is unknown whether they arrive."""


class Recorded(Play):
    """Remembers who reacted to what, and what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.reacted: list[tuple[Participant, Envelope[Any]]] = []
        self.asked: list[Any] = []
        self.answers = True
        """Whether a mail that is sent again is answered for."""

    def _react(self, participant: Participant, cause: Envelope[Any], attempt: int = 1) -> None:
        self.reacted.append((participant, cause))
        super()._react(participant, cause, attempt)

    def _answer(self, intent: Any) -> Any:
        if intent is not None:
            self.asked.append(intent)
        if isinstance(intent, Send) and intent.letter.customer == LOST:
            return SendAnswered(order_id=intent.order_id, result=Result.UNKNOWN, detail="lost")
        if isinstance(intent, Resend):
            if not self.answers:
                return None
            return SendAnswered(order_id=intent.order_id, result=Result.ACCEPTED, again=True)
        return super()._answer(intent)


@pytest.fixture(scope="module")
def played() -> Recorded:
    """Orders with every ending, and everything that people and timers do."""
    played = Recorded()
    played.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=20, unit_price_cents=250, currency="EUR"
        ),
    )
    for customer in ("ada", BROKE, "ada"):
        played.place(customer=customer)
    played.deliver()
    played.place(quantity=1_000)
    played.deliver()
    cancelled = played.place()
    played.give("order", CancelOrder(order_id=UUID(cancelled)))
    played.deliver()
    overdue = played.place()
    played.at += timedelta(days=1)
    played.give("order", ExpireOrder(order_id=UUID(overdue)))
    played.deliver()
    for decide in (ResendNotification, DismissNotification):
        order = UUID(played.place(customer=LOST))
        played.deliver()
        played.give("notification", decide(order_id=order))
    order = UUID(played.place(customer=LOST))
    played.deliver()
    played.answers = False
    played.give("notification", ResendNotification(order_id=order))
    played.at += RESENDING_MAX
    played.give("notification", GiveUpResending(order_id=order))
    played.give("notification", DismissNotification(order_id=order))
    return played


def test_every_reaction_that_there_is_was_played(played: Recorded) -> None:
    done = {(participant.name, type(cause.data)) for participant, cause in played.reacted}

    assert done == {
        (participant.name, reaction.consumes)
        for participant in played.graph.participants
        for reaction in participant.reactions
        if not issubclass(reaction.consumes, Answer)
    }


def test_what_was_done_and_forgotten_is_not_done_again(played: Recorded) -> None:
    done, events, asked = list(played.reacted), list(played.events), list(played.asked)
    states = {name: dict(kept) for name, kept in played.states.items()}
    for participant, cause in done:
        played._react(participant, cause)

        assert played.events == events, f"{participant.name} has published again: {cause.data!r}"
        assert played.asked == asked, f"{participant.name} has asked again: {cause.data!r}"
    assert played.states == states
